"""The part that runs in the trainer's process."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import trl.generation.vllm_generation as trl_generation
from safetensors.torch import save_file
from trl.generation.vllm_client import VLLMClient
from trl.generation.vllm_generation import VLLMGeneration

from entropy_rft.training.vllm_cpu import BACKEND
from entropy_rft.training.vllm_cpu.server_side import repack_heads

_SHARED_MEMORY = Path("/dev/shm")


class CPUVLLMClient(VLLMClient):
    """TRL's client of a vLLM server, which sends weights in a file instead of over NCCL."""

    def init_communicator(self, device: torch.device | str | int = 0) -> None:
        """Set up the weight transfer with the server.

        Raises:
            ValueError: when the server was not started with our weight transfer.
        """
        found = self.get_server_info()["weight_transfer_config"]
        if BACKEND not in str(found):
            raise ValueError(
                f"the vLLM server at {self.base_url} has weight_transfer_config {found!r}; on a CPU start it with "
                f"""--weight-transfer-config '{{"backend": "{BACKEND}"}}' where entropy_rft is installed"""
            )
        self._post(f"{self.base_url}/init_weight_transfer_engine", json={"init_info": {}})

    def update_named_params(
        self, metadata: list[tuple[str, str, list[int]]], named_params: Iterator[tuple[str, torch.Tensor]]
    ) -> None:
        """Put all weights into a file in shared memory, and let the server load it."""
        directory = _SHARED_MEMORY if _SHARED_MEMORY.is_dir() else None
        with tempfile.TemporaryDirectory(prefix="entropy_rft-", dir=directory) as folder:
            path = Path(folder) / "weights.safetensors"
            # A tensor may be a gathered one, which is freed when the next one is requested.
            save_file({name: tensor.detach().cpu().clone() for name, tensor in named_params}, path)
            with self.weight_update():
                self._post(f"{self.base_url}/update_weights", json={"update_info": {"path": str(path)}})


class CPUVLLMGeneration(VLLMGeneration):
    """TRL's vLLM backend on a CPU."""

    def _init_vllm(self) -> None:
        # Compiling takes minutes on a CPU. The checkpoint's dtype may be narrower than the one used in training.
        eager = partial(trl_generation.LLM, enforce_eager=True, dtype=self.model.dtype)
        with patch.object(trl_generation, "LLM", eager), patch.object(trl_generation, "VLLMClient", CPUVLLMClient):
            super()._init_vllm()

    def sync_weights(self) -> None:
        """Give vLLM the trainer's weights."""
        if self.mode == "server":
            super().sync_weights()
            return
        self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": self._iter_named_params()})
        worker: Any = self.llm.llm_engine.model_executor.driver_worker
        repack_heads(worker.model_runner.model)
        self.llm.reset_prefix_cache()
