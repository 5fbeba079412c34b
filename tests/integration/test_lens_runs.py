"""The lens in real runs: its sums are those of the logged metrics, it changes nothing, and it records plain TRL too."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from trl import GRPOConfig, GRPOTrainer

from entropy_rft import EntropyLens
from entropy_rft.cli.main import main
from entropy_rft.evaluation.lens import Bucket, load_lens, totals

pytestmark = pytest.mark.integration

OFTEN = {"entropy_clip": "clip_b", "entropy_clip_mu_low": 0.5, "entropy_clip_advantages": "all"}
TWO = {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4}
CASES: dict[str, dict[str, Any]] = {
    "accumulation": TWO,
    "iterations": {"num_iterations": 2, "entropy_clip_refresh": True},
    "sequence level": {"importance_sampling_level": "sequence", "loss_type": "grpo"},
    "no rule": {"entropy_clip": "none"},
}
PLAIN: dict[str, Any] = {"trainer_class": GRPOTrainer, "config_class": GRPOConfig, "max_steps": 3}


def train(trainer: Any) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
    trainer.train()
    parameters = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    return parameters, [entry for entry in trainer.state.log_history if "loss" in entry]


def lines(directory: Path, name: str = "lens.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / name).read_text().splitlines()]


@pytest.mark.parametrize("case", CASES)
def test_the_sums_are_those_of_the_metrics(make_trainer: Callable, tmp_path: Path, case: str) -> None:
    options = {"max_steps": 3, **OFTEN, **CASES[case]}
    trainer = make_trainer(entropy_lens_steps=1, entropy_audit_steps=2, **options)
    _, logs = train(trainer)
    lens = load_lens(tmp_path / "run")
    assert [record.step for record in lens.records] == [1, 2, 3]
    assert [record.step for record in lens.audited] == [2]
    for record, entry in zip(lens.records, logs, strict=True):
        total = record.total
        close = {"rel": 1e-4, "abs": 1e-6}
        assert total.predicted / total.tokens == pytest.approx(entry["entropy/predicted_change"], **close)
        assert total.loss < 0 < total.gain
        if case == "no rule":
            assert (total.dropped, total.dropped_loss, total.dropped_gain) == (0, 0, 0)
        else:
            assert total.dropped > 3
            assert total.dropped / total.tokens == pytest.approx(entry["entropy_clip/dropped"], rel=1e-9)
        if not record.audited:
            continue
        assert total.measured / total.tokens == pytest.approx(entry["entropy/measured_change"], **close)
        buckets = record.partitions["advantage_phase"]
        # The audit has the sign after the rule: a dropped token's advantage is 0, but with a sequence-level ratio.
        for part in ("thinking", "answer", "other"):
            bucket = Bucket.sum([bucket for name, bucket in buckets.items() if name.endswith(part)])
            assert bucket.predicted / total.tokens == pytest.approx(entry[f"entropy/predicted_change/{part}"], **close)
            assert bucket.measured / total.tokens == pytest.approx(entry[f"entropy/measured_change/{part}"], **close)
        if case == "no rule":
            for part in ("positive", "negative", "zero"):
                bucket = Bucket.sum([bucket for name, bucket in buckets.items() if name.startswith(part)])
                assert bucket.measured / total.tokens == pytest.approx(
                    entry[f"entropy/measured_change/{part}"], **close
                )
        for partition in record.partitions.values():
            assert sum(bucket.measured for bucket in partition.values()) == pytest.approx(total.measured, **close)
    if case == "iterations":
        assert [line["update"] for line in lines(tmp_path / "run")] == [1, 2, 1]


def test_it_changes_nothing_and_is_off_by_default(make_trainer: Callable, tmp_path: Path) -> None:
    options = {"max_steps": 3, **OFTEN, **TWO}
    parameters, _ = train(make_trainer(**options))
    assert not (tmp_path / "run" / "lens.jsonl").exists()
    recorded, _ = train(make_trainer(**options, entropy_lens_steps=2, entropy_lens_tokens=1))
    assert all(torch.equal(recorded[name], p) for name, p in parameters.items())
    assert [line["step"] for line in lines(tmp_path / "run")] == [2]


def test_stored_tokens_are_found_in_the_completions(make_trainer: Callable, tmp_path: Path) -> None:
    trainer = make_trainer(entropy_lens_steps=1, entropy_lens_tokens=3, max_steps=2, **OFTEN, **TWO)
    decode = trainer.processing_class.decode
    seen: set[str] = set()
    compute = trainer._compute_loss

    def recording(model: Any, inputs: dict[str, Any]) -> Any:
        ids = inputs["completion_ids"][inputs["completion_mask"] != 0].tolist()
        seen.update(str(decode([token])) for token in ids)
        return compute(model, inputs)

    trainer._compute_loss = recording
    trainer.train()
    found = lines(tmp_path / "run", "lens_tokens.jsonl")
    assert [entry["step"] for entry in found] == [1, 2]
    for entry, sums in zip(found, lines(tmp_path / "run"), strict=True):
        changes = [token["change"] for token in entry["tokens"]]
        assert changes == sorted(changes)
        assert [change < 0 for change in changes] == [True] * 3 + [False] * 3
        for token in entry["tokens"]:
            assert token["token"] in seen
            surprise = math.log(token["probability"])
            assert token["discriminant"] == pytest.approx(token["probability"] * (token["entropy"] + surprise))
            assert token["advantage"] != 0
            assert 0 < token["probability"] <= 1
            assert "?" in token["before"]  # the end of the question
        whole = sum(row[1] for row in sums["probability"].values())
        assert sum(changes[:3]) >= whole
    assert any(token["dropped"] for entry in found for token in entry["tokens"])


def test_inspect_shows_a_run(make_trainer: Callable, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(make_trainer(entropy_lens_steps=1, entropy_lens_tokens=2, entropy_audit_steps=1, max_steps=3, **OFTEN, **TWO))
    capsys.readouterr()
    page, values = tmp_path / "lens.html", tmp_path / "lens.json"
    assert main(["inspect", str(tmp_path / "run"), "--json", str(values), "--output", str(page)]) == 0
    out = capsys.readouterr().out
    assert "3 recorded updates, 1 to 3, 3 of them audited" in " ".join(out.split())
    assert out.count("⟦") == 10
    (run,) = json.loads(values.read_text())["runs"]
    assert run["steps"] == run["audited_steps"] == [1, 2, 3]
    assert page.read_text().count("<mark>") == 10


@pytest.mark.parametrize("options", [{}, TWO, {"num_iterations": 2}], ids=str)
def test_plain_trl_is_recorded_and_stays_as_it_is(
    make_trainer: Callable, tmp_path: Path, options: dict[str, Any]
) -> None:
    def dropout(trainer: Any) -> Any:
        for layer in trainer.model.model.layers:
            layer.self_attn.attention_dropout = 0.1  # its random numbers must not be used up by the lens
        return trainer

    parameters, logs = train(dropout(make_trainer(**PLAIN, **options)))
    trainer = dropout(make_trainer(**PLAIN, **options))
    EntropyLens(trainer, steps=1, tokens=1)
    recorded, recorded_logs = train(trainer)
    assert all(torch.equal(recorded[name], p) for name, p in parameters.items())
    assert [entry["loss"] for entry in recorded_logs] == [entry["loss"] for entry in logs]
    assert [line["step"] for line in lines(tmp_path / "run")] == [1, 2, 3]
    assert len(lines(tmp_path / "run", "lens_tokens.jsonl")[0]["tokens"]) == 2
    assert main(["inspect", str(tmp_path / "run")]) == 0


def test_plain_trl_has_the_sums_of_our_trainer_without_a_rule(make_trainer: Callable, tmp_path: Path) -> None:
    plain = make_trainer(**PLAIN, **TWO)
    EntropyLens(plain, steps=1)
    train(plain)
    (tmp_path / "run").rename(tmp_path / "plain")
    train(make_trainer(entropy_clip="none", entropy_lens_steps=1, max_steps=3, **TWO))
    plain_sums, own_sums = (totals(load_lens(tmp_path / name).records) for name in ("plain", "run"))
    for name in ("advantage_phase", "probability"):
        for bucket, own in own_sums[name].items():
            assert plain_sums[name][bucket].tokens == own.tokens
            assert plain_sums[name][bucket].loss == pytest.approx(own.loss, rel=1e-4, abs=1e-5)
            assert plain_sums[name][bucket].gain == pytest.approx(own.gain, rel=1e-4, abs=1e-5)


def test_an_evaluation_is_not_recorded(make_trainer: Callable, tmp_path: Path) -> None:
    from training_inputs import prompts

    trainer = make_trainer(
        **PLAIN | {"max_steps": 2},
        eval_strategy="steps",
        eval_steps=1,
        per_device_eval_batch_size=8,
        trainer_options={"eval_dataset": prompts(8)},
    )
    EntropyLens(trainer, steps=2)
    _, logs = train(trainer)
    (line,) = lines(tmp_path / "run")
    tokens = sum(row[0] for row in line["probability"].values())
    assert tokens == pytest.approx(8 * logs[1]["completions/mean_length"])


def test_lines_after_the_checkpoint_are_dropped_when_a_plain_run_resumes(
    make_trainer: Callable, tmp_path: Path
) -> None:
    saved = {"save_strategy": "steps", "save_steps": 1, "lr_scheduler_type": "constant"}

    def run(steps: int, checkpoint: str | None = None) -> None:
        trainer = make_trainer(**PLAIN | {"max_steps": steps}, **saved)
        EntropyLens(trainer, steps=1, tokens=1)
        trainer.train(resume_from_checkpoint=checkpoint)

    run(2)
    with (tmp_path / "run" / "lens.jsonl").open("a") as file:
        file.write('{"step": 3, "colu')  # as if it had been killed
    run(3, str(tmp_path / "run" / "checkpoint-1"))
    for name in ("lens.jsonl", "lens_tokens.jsonl"):
        assert [line["step"] for line in lines(tmp_path / "run", name)] == [1, 2, 3]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"steps": True}, "steps must be a whole number, got True"),
        ({"tokens": -1}, "tokens must be at least 0, got -1"),
        ({"think_end_token": ""}, "think_end_token must be the text"),
    ],
)
def test_a_wrong_argument_is_named(make_trainer: Callable, options: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        EntropyLens(make_trainer(**PLAIN), **options)


def test_our_own_trainer_and_others_are_refused(make_trainer: Callable) -> None:
    with pytest.raises(TypeError, match="records by itself: set entropy_lens_steps to 10"):
        EntropyLens(make_trainer())
    with pytest.raises(TypeError, match=r"must be a trl.GRPOTrainer, got str"):
        EntropyLens("trainer")  # type: ignore[arg-type]
