"""Hidden states from an SGLang server of the same model, started with `--return-hidden-states-mode last`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from entropy_rft.router.states_server import StatesServer


class SGLang(StatesServer):
    """Asks ``POST URL/generate`` for one token and, with ``return_hidden_states: "last"``, for one state.

    With one token that state is the prompt's last one, after the final norm. The same server may generate the answers:
    its radix cache then has the question. It was tried against a stub of this protocol only.
    """

    what = "an SGLang server"
    path = "/generate"
    advice = "this model's hidden states are not those of transformers: set features.kind to local"

    def _body(self, batch: list[list[int]]) -> dict[str, Any]:
        return {
            "input_ids": batch,
            "sampling_params": {"max_new_tokens": 1, "temperature": 0, "ignore_eos": True},
            "return_hidden_states": "last",
        }

    def _states(self, data: Any) -> Sequence[Any]:
        return [answer["meta_info"]["hidden_states"][-1] for answer in data]
