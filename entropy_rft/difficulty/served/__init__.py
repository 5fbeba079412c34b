"""A probe inside the vLLM server that generates: no second engine holds the model only to read its hidden states.

`register` is vLLM's entry point, `attach` evaluates the probe in the workers, `wire` is what a request and its answer
look like. The other side is `entropy_rft.router.vllm_served`.
"""

from __future__ import annotations

import os

ENV = "ENTROPY_RFT_PROBE"
"""Environment variable of the server: the probe's directory, or ``embedded``. Without it nothing is changed."""


def register() -> None:
    """Called by vLLM in each of its processes (entry point ``vllm.general_plugins``); does nothing without `ENV`.

    Raises:
        ValueError: the probe cannot be used; one line.
    """
    directory = os.environ.get(ENV)
    if not directory:
        return
    from entropy_rft.difficulty.served.attach import install

    install(directory)
