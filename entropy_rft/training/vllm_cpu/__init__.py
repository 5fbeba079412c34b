"""vLLM rollouts without a GPU: what a CPU needs beyond TRL, used only where the device is one.

TRL passes new weights to vLLM tensor by tensor (colocated) or over NCCL (server). On a CPU vLLM repacks its linear
layers after loading, so a single tensor cannot be loaded, and NCCL does not exist. `trainer_side` reloads the whole
model instead. `server_side` lets a vLLM server read it from a file in shared memory.
"""

from __future__ import annotations

BACKEND = "entropy_rft_file"  # of vLLM's --weight-transfer-config


def register() -> None:
    """Called by vLLM in each of its processes (entry point ``vllm.general_plugins``); does nothing on a GPU."""
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

    if BACKEND not in WeightTransferEngineFactory._registry:  # vLLM may load its plugins twice
        WeightTransferEngineFactory.register_engine(
            BACKEND, "entropy_rft.training.vllm_cpu.server_side", "FileWeightTransferEngine"
        )
