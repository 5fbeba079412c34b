"""Three ways to ask for thinking, as a system message. The embedded models are trained to obey exactly these texts."""

from __future__ import annotations

DIRECT = "Answer directly and verify once. Keep your thinking very short."
STEP_BY_STEP = "Think step by step."
STOP_EARLY = "Think step by step, but stop early: when it gets long, give your best answer."

INSTRUCTIONS = (DIRECT, STEP_BY_STEP, STOP_EARLY)
