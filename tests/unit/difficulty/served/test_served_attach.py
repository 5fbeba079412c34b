"""The probe in a model runner of either of vLLM's versions, which is a stub here (`test_vllm_one_engine.py` has the
real one)."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from entropy_rft.difficulty import DifficultyProbe
from entropy_rft.difficulty.served import ENV, register
from entropy_rft.difficulty.served.attach import ServedProbe, refusal
from entropy_rft.difficulty.served.wire import MARK, TOKENS, decoded

WIDTH, VOCABULARY = 6, 40


@pytest.fixture(scope="module")
def probe():
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(60, WIDTH, generator=generator)
    labels = ["easy", "normal", "hard"] * 20
    return DifficultyProbe("mlp", hidden_units=8).fit(states, labels, epochs=2)


class Model:
    def __init__(self):
        self.head = torch.randn(VOCABULARY, WIDTH, generator=torch.Generator().manual_seed(1))
        self.dtype = torch.float32

    def compute_logits(self, hidden_states):
        return (hidden_states @ self.head.T).to(self.dtype)


class First:
    """vLLM's first model runner: logits inside ``execute_model``, the batch in ``input_batch``."""

    def __init__(self):
        self.model = Model()
        self.input_batch = SimpleNamespace(req_ids=[])
        self.execute_model_state = None

    def execute_model(self, step):
        self.input_batch.req_ids = step.order
        if not step.order:
            return
        self.hidden = torch.randn(step.rows, WIDTH, generator=torch.Generator().manual_seed(step.rows))
        self.logits = self.model.compute_logits(self.hidden)
        self.execute_model_state = object()

    def sample_tokens(self):
        self.execute_model_state = None
        self.prompt_logits = self.model.compute_logits(self.hidden)  # of a prompt's log-probabilities


class Second:
    """The second one: logits in ``sample_tokens``, the batch in ``execute_model_state``."""

    def __init__(self):
        self.model = Model()
        self.req_states = object()
        self.execute_model_state = None

    def execute_model(self, step):
        if step.order:
            counts = [len(step.scheduled_spec_decode_tokens.get(name, ())) + 1 for name in step.order]
            batch = SimpleNamespace(req_ids=step.order, cu_num_logits_np=np.cumsum([0, *counts]))
            self.rows = step.rows
            self.execute_model_state = SimpleNamespace(input_batch=batch)

    def sample_tokens(self):
        if self.execute_model_state is None:
            return
        self.execute_model_state = None
        self.hidden = torch.randn(self.rows, WIDTH, generator=torch.Generator().manual_seed(self.rows))
        self.logits = self.model.compute_logits(self.hidden)
        self.prompt_logits = self.model.compute_logits(self.hidden)


def request(name, marked=True, lora=None):
    extra = {MARK: 1} if marked else None
    return SimpleNamespace(req_id=name, sampling_params=SimpleNamespace(extra_args=extra), lora_request=lora)


def step(order, new=(), finished=(), drafts=None):
    drafts = drafts or {}
    rows = sum(len(drafts.get(name, ())) + 1 for name in order)
    return SimpleNamespace(
        order=list(order),
        rows=rows,
        scheduled_new_reqs=list(new),
        finished_req_ids=set(finished),
        scheduled_spec_decode_tokens=drafts,
    )


def run(runner, this):
    runner.execute_model(this)
    if this.order:
        runner.sample_tokens()


def result(row):
    """What an answer with these logits says."""
    top = row.log_softmax(-1, dtype=torch.float32).topk(TOKENS)
    named = {f"token_id:{t}": v for t, v in zip(top.indices.tolist(), top.values.tolist(), strict=True)}
    return decoded({"choices": [{"logprobs": {"top_logprobs": [named]}}]})


def plain(runner):
    return (runner.hidden @ runner.model.head.T).to(runner.model.dtype)


@pytest.fixture(params=[First, Second])
def runner(request):
    return request.param()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_only_the_rows_of_marked_requests_change(runner, probe, dtype):
    runner.model.dtype = dtype
    served = ServedProbe(runner, probe, "cpu")
    run(runner, step("abcd", [request("a", False), request("b"), request("c", False), request("d")]))
    expected = probe.predict_proba(runner.hidden)
    for row in (1, 3):
        found, digest = result(runner.logits[row])
        assert found == pytest.approx(expected[row].tolist(), abs=1e-6)
        assert digest == served.digest[:6]
        assert runner.logits[row, TOKENS:].eq(float("-inf")).all()
    assert runner.logits[[0, 2]].equal(plain(runner)[[0, 2]])
    assert runner.prompt_logits.equal(plain(runner))  # a later call in the same step


def test_a_step_without_marked_requests(runner, probe):
    served = ServedProbe(runner, probe, "cpu")
    run(runner, step("ab", [request("a", False), request("b", False)]))
    assert runner.logits.equal(plain(runner))
    assert served.marked == {}


def test_a_marked_request_over_several_steps_is_forgotten_when_it_ends(runner, probe):
    """Its prompt may come in parts: the last part's row is the one that is answered."""
    served = ServedProbe(runner, probe, "cpu")
    run(runner, step("ab", [request("a"), request("b", False)]))
    run(runner, step("ba"))  # the batch was reordered
    assert result(runner.logits[1])[0] == pytest.approx(probe.predict_proba(runner.hidden)[1].tolist(), abs=1e-6)
    assert runner.logits[0].equal(plain(runner)[0])
    run(runner, step("", finished="a"))
    assert served.marked == {}
    run(runner, step("b"))
    assert runner.logits.equal(plain(runner))


def test_beside_drafts_of_speculative_decoding(runner, probe):
    ServedProbe(runner, probe, "cpu")
    run(runner, step("abc", [request("b")], drafts={"a": [1, 2, 3], "c": [4]}))
    assert len(runner.logits) == 7
    assert result(runner.logits[4])[0] == pytest.approx(probe.predict_proba(runner.hidden)[4].tolist(), abs=1e-6)
    others = [0, 1, 2, 3, 5, 6]
    assert runner.logits[others].equal(plain(runner)[others])


def test_a_prompt_that_is_cached_but_for_its_last_token(runner, probe):
    """vLLM then gives it placeholders for drafts, after that token."""
    ServedProbe(runner, probe, "cpu")
    run(runner, step("ab", [request("b")], drafts={"a": [1, 2], "b": [-1, -1]}))
    assert result(runner.logits[3])[0] == pytest.approx(probe.predict_proba(runner.hidden)[3].tolist(), abs=1e-6)
    others = [0, 1, 2, 4, 5]
    assert runner.logits[others].equal(plain(runner)[others])


def test_a_request_with_an_adapter_is_refused(runner, probe):
    ServedProbe(runner, probe, "cpu")
    run(runner, step("a", [request("a", lora=object())]))
    with pytest.raises(ValueError, match="LoRA"):
        result(runner.logits[0])


def test_a_state_that_is_not_finite(runner, probe, monkeypatch):
    ServedProbe(runner, probe, "cpu")
    monkeypatch.setattr(torch, "randn", lambda rows, width, generator: torch.full((rows, width), float("inf")))
    run(runner, step("a", [request("a")]))
    with pytest.raises(ValueError, match="not finite"):
        result(runner.logits[0])


def test_a_rank_without_logits(runner, probe, monkeypatch):
    monkeypatch.setattr(Model, "compute_logits", lambda self, hidden_states: None)
    ServedProbe(runner, probe, "cpu")
    run(runner, step("a", [request("a")]))
    assert runner.logits is None


def test_rows_that_do_not_match_the_batch_are_left_alone(probe):
    runner = First()
    ServedProbe(runner, probe, "cpu")
    wrong = step("ab", [request("a")])
    wrong.rows = 3
    run(runner, wrong)
    assert runner.logits.equal(plain(runner))


SIZES = {"hidden_size": WIDTH, "layers": 4, "vocabulary": VOCABULARY}


@pytest.mark.parametrize(
    ("sizes", "options", "layer", "message"),
    [
        ({}, {}, 2, "it reads layer 2, but logits are made from the last one"),
        ({}, {}, 0, "it reads layer 0"),
        ({"hidden_size": 8}, {}, -1, f"it reads the width {WIDTH}, but the model has 8"),
        ({"vocabulary": 10}, {}, -1, "the model has 10 tokens, and a result needs 14"),
        ({}, {"is_pooling_model": True}, -1, "unset ENTROPY_RFT_PROBE and set features.kind to vllm_pooling"),
        ({}, {"speculative_config": SimpleNamespace(method="ngram_gpu")}, -1, "ngram_gpu is not supported: use ngram"),
        ({}, {"batch_sharder": object()}, -1, "start without enable_batch_sharded_sampling"),
        ({}, {"pcp_manager": object()}, -1, "prefill context parallelism is not supported"),
    ],
)
def test_what_is_refused(probe, sizes, options, layer, message, monkeypatch):
    monkeypatch.setattr(probe, "layer", layer)
    runner = SimpleNamespace(input_batch=object(), **options)
    found = refusal(probe, **(SIZES | sizes), runner=runner)
    assert found is not None
    assert message in found


@pytest.mark.parametrize("layer", [-1, 4])
def test_what_is_not_refused(probe, layer, monkeypatch):
    monkeypatch.setattr(probe, "layer", layer)
    assert refusal(probe, **SIZES, runner=First()) is None
    assert refusal(probe, **SIZES, runner=Second()) is None
    assert "is not one that this package knows" in str(refusal(probe, **SIZES, runner=object()))


def test_without_the_variable_nothing_is_imported(monkeypatch):
    monkeypatch.delenv(ENV, raising=False)
    code = (
        "import sys; from entropy_rft.difficulty.served import register; register(); "
        "print([name for name in ('torch', 'vllm', 'entropy_rft.difficulty.served.attach') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_directory_without_a_probe_stops_the_server(monkeypatch, tmp_path):
    """vLLM calls this before it loads a model, and its error ends the process."""
    monkeypatch.setenv(ENV, str(tmp_path))
    with pytest.raises(ValueError, match=r"has no probe\.json: give a directory that save_pretrained wrote"):
        register()
