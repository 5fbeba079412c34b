"""Hidden states from a vLLM server that runs the same model with `--runner pooling`."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

from entropy_rft.router.states_server import StatesServer


class VLLMPooling(StatesServer):
    """Asks ``POST URL/pooling``.

    Such a server pools the last token after the final norm, and with ``use_activation: false`` does nothing more to it:
    in float32 that equals the state of `question_states` to 1e-4. vLLM before 0.16 does not have that field and
    normalises.
    """

    what = "a pooling server"
    path = "/pooling"
    advice = "use vLLM 0.16 or newer"

    def _body(self, batch: list[list[int]]) -> dict[str, Any]:
        return {
            "model": self.model,
            "input": batch,
            "task": "embed",
            "use_activation": False,
            "encoding_format": "base64",
            "add_special_tokens": False,
        }

    def _states(self, data: Any) -> Sequence[Any]:
        import numpy as np

        entries = sorted(data["data"], key=lambda entry: entry["index"])
        return [np.frombuffer(base64.b64decode(entry["data"], validate=True), "<f4") for entry in entries]
