"""Hidden states from a model in this process, in one worker thread."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from entropy_rft.errors import UserValueError
from entropy_rft.router.batching import FeatureError, MicroBatcher
from entropy_rft.threads import chosen_by_user, own_cores

logger = logging.getLogger(__name__)

_BATCH_TOKENS = 16_384  # padding included, in one forward; a longer question runs alone


class LocalStates:
    """Runs the model itself, on questions that arrive together in one forward.

    In float32 a state equals that of `question_states` to 1e-4. The model is loaded by `start`, in the worker thread.

    Args:
        model: a directory, a name on the hub, ``modulo_reasoner`` or ``smollm2``.
        layer: as in transformers' `hidden_states`; -1 is the last, after the final norm.
        width: that the probe reads; ``None`` checks nothing.
        fingerprint: of the weights that the probe was made for; ``None`` checks nothing.
        force: only warn where the weights differ.
        batch_size: questions in one forward.
        batch_wait: seconds that a question waits for others.
        max_queue: questions that may wait; further ones are refused.
        max_tokens: of a question; by default the model's context length.
        device: ``None`` takes the accelerator when there is one.
        timeout: seconds for one batch; after that its questions fail.
        threads: at most, for a forward on a CPU; fewer are used while other processes use the cores (see
            `entropy_rft.threads`). ``None`` leaves one core to the router.
    """

    def __init__(
        self,
        model: str,
        *,
        layer: int = -1,
        width: int | None = None,
        fingerprint: str | None = None,
        force: bool = False,
        batch_size: int = 16,
        batch_wait: float = 0.002,
        max_queue: int = 1024,
        max_tokens: int | None = None,
        device: str | None = None,
        timeout: float = 30.0,
        threads: int | None = None,
    ) -> None:
        self.name = model
        self.layer = layer
        self.width = width
        self.fingerprint = fingerprint
        self.force = force
        self.max_tokens = max_tokens
        self._device = device
        # None leaves what the environment says.
        self._threads = threads or (None if chosen_by_user() else max(1, len(own_cores()) - 1))
        self._model: Any = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="router-features")
        self._batcher = MicroBatcher(
            self._run, batch_size=batch_size, wait=batch_wait, max_queue=max_queue, timeout=timeout
        )

    async def start(self) -> None:
        """Load the model.

        Raises:
            ValueError: it cannot be loaded, has no such layer, or is not the one that the probe was made for.
        """
        await asyncio.get_running_loop().run_in_executor(self._thread, self._load)

    async def close(self) -> None:
        await self._batcher.close()
        self._thread.shutdown(wait=False, cancel_futures=True)
        # This object and its batcher refer to each other, and `settle_memory` may keep such a cycle for ever.
        self._model = None

    async def ready(self) -> bool:
        return self._model is not None and not self._batcher.timed_out

    async def state(self, token_ids: list[int], wanted: Callable[[], bool]) -> Sequence[float]:
        """(D,) float32 of the last token.

        Raises:
            FeatureError: the question is too long or has tokens that the model lacks, the queue is full, the worker is
                too slow or has ended, or the state is not finite.
        """
        if self._model is None:
            raise FeatureError("the model of the features is not loaded, or closed")
        if not token_ids:
            raise FeatureError("the prompt has no tokens")
        if self.max_tokens is not None and len(token_ids) > self.max_tokens:
            raise FeatureError(f"the question has {len(token_ids)} tokens, the limit is {self.max_tokens}")
        if not 0 <= min(token_ids) <= max(token_ids) < self._model.get_input_embeddings().num_embeddings:
            raise FeatureError("the prompt has tokens that are not in the model's vocabulary")
        return await self._batcher.value(token_ids, wanted)

    async def _run(self, batch: list[list[int]]) -> Sequence[Any]:
        try:
            future = asyncio.get_running_loop().run_in_executor(self._thread, self._forward, batch)
        except RuntimeError as error:  # the executor raises it when its thread has ended
            raise FeatureError("the worker of the features has ended") from error
        return await future

    def _load(self) -> None:
        import torch

        from entropy_rft.difficulty.states import check_layer, fingerprint
        from entropy_rft.models.adapters import under_adapter
        from entropy_rft.sampling import load_model_and_tokenizer

        # Threads that share a core, with one another or with the router, can take a hundred times as long.
        if self._threads is not None:
            torch.set_num_threads(self._threads)
        loaded, _ = load_model_and_tokenizer(self.name, device=self._device)
        model = under_adapter(loaded)
        check_layer(model, self.layer)
        config = model.config.get_text_config()
        if self.width is not None and config.hidden_size != self.width:
            raise UserValueError(f"the probe reads the width {self.width}, {self.name!r} has {config.hidden_size}")
        if self.fingerprint is not None and fingerprint(model, like=self.fingerprint) != self.fingerprint:
            message = f"the probe was made for other weights than those of {self.name!r}"
            if not self.force:
                raise UserValueError(f"{message}: train it again, or set force_probe")
            logger.warning("%s: its results for this model's questions are unreliable", message)
        if self.max_tokens is None:
            self.max_tokens = getattr(config, "max_position_embeddings", None)
        model.eval()
        self._model = model
        self._forward([[0, 0]])  # the first one is slow, and would miss its deadline

    def _forward(self, batch: list[list[int]]) -> list[Any]:
        """In the worker: states of a batch, in its order; an error in place of a state that is not finite."""
        model = self._model
        if model is None:
            raise FeatureError("the model of the features is closed")
        order = sorted(range(len(batch)), key=lambda index: len(batch[index]))
        results: list[Any] = [None] * len(batch)
        for chunk in forward_batches(order, batch):
            for index, state in zip(chunk, self._states(model, [batch[index] for index in chunk]), strict=True):
                finite = bool(state.isfinite().all())
                results[index] = state.numpy() if finite else FeatureError("the model's hidden state is not finite")
        return results

    def _states(self, model: Any, rows: list[list[int]]) -> Any:
        """(rows, D) float32 on the CPU. Padding is on the right, where it has no effect on a causal model."""
        import torch

        device = model.get_input_embeddings().weight.device
        lengths = torch.tensor([len(row) for row in rows])
        width = int(lengths.max())
        input_ids = torch.tensor([row + [row[-1]] * (width - len(row)) for row in rows])
        mask = (torch.arange(width) < lengths[:, None]).long()
        last = self.layer in (-1, model.config.get_text_config().num_hidden_layers)
        with torch.inference_mode():
            output = model.base_model(
                input_ids=input_ids.to(device),
                attention_mask=mask.to(device),
                use_cache=False,
                output_hidden_states=not last,
            )
            hidden = output.last_hidden_state if last else output.hidden_states[self.layer]
            return hidden[torch.arange(len(rows)), lengths - 1].float().cpu()


def forward_batches(order: list[int], batch: list[list[int]]) -> list[list[int]]:
    """Groups of rows of similar length, so that little of a forward is padding."""
    chunks: list[list[int]] = []
    for index in order:
        length = len(batch[index])
        chunk = chunks[-1] if chunks else None
        if chunk and length <= 2 * len(batch[chunk[0]]) + 16 and length * (len(chunk) + 1) <= _BATCH_TOKENS:
            chunk.append(index)
        else:
            chunks.append([index])
    return chunks
