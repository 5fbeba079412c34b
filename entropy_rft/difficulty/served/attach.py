"""Evaluates a probe in vLLM's workers. All uses of vLLM's inner names are in this file.

A worker's model runner calls ``model.compute_logits(hidden_states)`` in Python, after the forward pass and outside any
captured graph, with one row for each position that is sampled: the state after the final norm. For a new prompt that is
its last token. The call is wrapped: rows of marked requests get the probe's result (`wire`), all others are left alone.
Where no request is marked, a step costs a look at the list of its new requests.

Which row belongs to which request is known to the runner only. vLLM has two: version 1 calls it in ``execute_model``,
version 2 later, in ``sample_tokens``, with the batch that ``execute_model`` has left in ``execute_model_state``.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from entropy_rft.difficulty.probe import DifficultyProbe
from entropy_rft.difficulty.served.wire import MARK, STATUS_ADAPTER, STATUS_OK, TOKENS, encoded
from entropy_rft.errors import UserValueError

if TYPE_CHECKING:
    from torch import Tensor


def install(directory: str) -> None:
    """Let every worker of this process attach the probe in `directory` to the model that it loads; once.

    Raises:
        ValueError: the probe cannot be loaded; one line.
    """
    load_probe(directory)  # a wrong directory is found before a model is loaded
    from vllm.v1.worker.worker_base import WorkerBase

    if getattr(WorkerBase.__init__, "entropy_rft", False):  # vLLM may load its plugins twice
        return
    original = WorkerBase.__init__

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        load = self.load_model

        def load_model(*args: Any, **kwargs: Any) -> Any:
            result = load(*args, **kwargs)
            attach(self, load_probe(directory))
            return result

        self.load_model = load_model

    init.entropy_rft = True  # type: ignore[attr-defined]
    WorkerBase.__init__ = init


def load_probe(directory: str) -> DifficultyProbe:
    """The probe in `directory`; ``embedded`` is the embedded model's."""
    from entropy_rft.assets import DEFAULT_PROBE

    return DifficultyProbe.from_pretrained(DEFAULT_PROBE if directory == "embedded" else directory)


def attach(worker: Any, probe: DifficultyProbe) -> ServedProbe | None:
    """Evaluate `probe` in a worker that has loaded its model; ``None`` in a pipeline stage without logits.

    Raises:
        ValueError: the probe does not fit the model, or the server's mode is not supported; one line.
    """
    from vllm.distributed import get_pp_group
    from vllm.logger import init_logger

    from entropy_rft.difficulty.states import same_model

    logger = init_logger("vllm.entropy_rft")
    runner, config = worker.model_runner, worker.model_config
    reason = refusal(
        probe,
        hidden_size=config.get_hidden_size(),
        layers=config.hf_text_config.num_hidden_layers,
        vocabulary=config.get_vocab_size(),
        runner=runner,
    )
    if reason is not None:
        raise UserValueError(f"the probe cannot be evaluated in this server: {reason}")
    if not get_pp_group().is_last_rank:
        return None
    if probe.base_model is not None and not same_model(probe.base_model, config.model):
        logger.warning(
            "the probe was made for the base model %r, and this server has %r: if they differ, its results are wrong "
            "(entropy-rft probe check --url compares them)",
            probe.base_model,
            config.model,
        )
    served = ServedProbe(runner, probe, worker.device)
    logger.info("requests with vllm_xargs %r get the result of the probe %s", MARK, served.digest[:6])
    return served


def refusal(probe: DifficultyProbe, *, hidden_size: int, layers: int, vocabulary: int, runner: Any) -> str | None:
    """Why `probe` cannot be evaluated by `runner` for a model of these sizes, or ``None``."""
    if probe.layer not in (-1, layers):
        return (
            f"it reads layer {probe.layer}, but logits are made from the last one (-1): collect traces with "
            "--layer -1, or set the router's features.kind to local"
        )
    if probe.width != hidden_size:
        return f"it reads the width {probe.width}, but the model has {hidden_size}: serve the probe's base model"
    if vocabulary < TOKENS:
        return f"the model has {vocabulary} tokens, and a result needs {TOKENS}"
    if getattr(runner, "is_pooling_model", False):
        return "a pooling server makes no logits: unset ENTROPY_RFT_PROBE and set features.kind to vllm_pooling"
    if getattr(getattr(runner, "speculative_config", None), "method", None) == "ngram_gpu":
        return "speculative decoding with ngram_gpu is not supported: use ngram"
    if getattr(runner, "batch_sharder", None) is not None:
        return "batch-sharded sampling is not supported: start without enable_batch_sharded_sampling"
    if getattr(runner, "pcp_manager", None) is not None:
        return "prefill context parallelism is not supported: start without it"
    if not hasattr(runner, "input_batch") and not hasattr(runner, "req_states"):
        return f"its model runner {type(runner).__name__} is not one that this package knows"
    return None


class ServedProbe:
    """A probe attached to a model runner.

    Args:
        runner: of vLLM, its model loaded.
        probe: fitted.
        device: where the hidden states are.

    Attributes:
        digest: of the probe.
        marked: status of each marked request in progress, by its id.
    """

    def __init__(self, runner: Any, probe: DifficultyProbe, device: Any) -> None:
        self.digest = probe.digest()
        self.marked: dict[str, int] = {}
        self._runner = runner
        self._second = not hasattr(runner, "input_batch")
        self._predict = probe.on(device)
        self._step: Any = None  # scheduled, and its logits are not computed yet
        self._batch: Any = None  # of version 2
        self._execute_model = runner.execute_model
        self._compute_logits = runner.model.compute_logits
        runner.execute_model = self.execute_model
        runner.model.compute_logits = self.compute_logits

    def execute_model(self, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        """Notice marked requests before the runner's own ``execute_model``."""
        for request in scheduler_output.scheduled_new_reqs:
            extra = getattr(request.sampling_params, "extra_args", None)
            if extra and MARK in extra:
                self.marked[request.req_id] = STATUS_OK if request.lora_request is None else STATUS_ADAPTER
        self._step = self._batch = None
        if not self.marked:
            return self._execute_model(scheduler_output, *args, **kwargs)
        for name in scheduler_output.finished_req_ids:
            self.marked.pop(name, None)
        self._step = scheduler_output
        result = self._execute_model(scheduler_output, *args, **kwargs)
        state = self._runner.execute_model_state
        if not self._second or state is None:
            self._step = None
        else:
            self._batch = state.input_batch
        return result

    def compute_logits(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """The model's logits, with the probe's results in the rows of marked requests."""
        logits = self._compute_logits(hidden_states, *args, **kwargs)
        step, self._step = self._step, None  # a further call in the same step is for a prompt's log-probabilities
        if step is None or logits is None:  # with tensor parallelism only one rank may have them
            return logits
        found = self._rows(step, len(hidden_states))
        if found:
            self._write(logits, hidden_states, found)
        return logits

    def _rows(self, step: Any, count: int) -> dict[int, int]:
        """The status of each row that gets a result, by its number.

        A request has a row for its last token, and with speculative decoding one more for each draft that follows. A
        new prompt has drafts too where all but its last token is cached: placeholders, which make all requests equally
        long. So the row of its last token is its first one.
        """
        if self._second:
            if self._batch is None:
                return {}
            names: Sequence[str] = self._batch.req_ids
            starts = [int(start) for start in self._batch.cu_num_logits_np[: len(names) + 1]]
        else:
            names, drafts = self._runner.input_batch.req_ids, step.scheduled_spec_decode_tokens
            starts = [0, *accumulate(len(drafts.get(name, ())) + 1 for name in names)]
        if starts[-1] != count:  # never seen; the answer is then an ordinary one, which the router refuses
            return {}
        return {start: self.marked[name] for name, start in zip(names, starts, strict=False) if name in self.marked}

    def _write(self, logits: Tensor, hidden_states: Tensor, found: dict[int, int]) -> None:
        import torch

        rows = torch.tensor(list(found), device=logits.device)
        statuses = torch.tensor(list(found.values()), device=logits.device)
        values = encoded(self._predict(hidden_states[rows]), statuses, self.digest)
        logits[rows] = float("-inf")
        logits[rows, : values.shape[1]] = values.to(logits.dtype)
