"""What the trainer decides before TRL's constructor runs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import trl.trainer.grpo_trainer as trl_trainer

from entropy_rft.training import trl_hooks


@pytest.mark.parametrize(
    ("use_vllm", "device", "installed"),
    [(True, "cuda", True), (False, "cpu", True), (True, "cpu", False)],
)
def test_trl_keeps_its_own_vllm_backend(
    use_vllm: bool, device: str, installed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trl_hooks, "is_vllm_available", lambda: installed)
    own = trl_trainer.VLLMGeneration
    args: Any = SimpleNamespace(use_vllm=use_vllm, device=torch.device(device))
    with trl_hooks.vllm_for(args):
        assert trl_trainer.VLLMGeneration is own
