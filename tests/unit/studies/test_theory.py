"""The theory at a small size: slopes of 1, quadratic errors, a split that adds up, and prediction from gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from studies.methods import theory
from studies.methods.theory import EntropyModel, TheorySettings, order_of, step_direction, study

SMALL = TheorySettings(
    batches=2, questions=2, samples=4, max_tokens=200, swept=1,
    alphas=(1.0, 0.1, 0.01, 0.001), sgd_rates=(0.1, 0.01, 0.001), adam_rates=(1e-4, 1e-5, 1e-6),
)  # fmt: skip


@pytest.fixture(scope="module")
def tiny() -> Any:
    from entropy_rft.sampling import load_model_and_tokenizer

    return load_model_and_tokenizer("tiny_reasoner", device="cpu")


@pytest.fixture(scope="module")
def result(tiny: Any) -> dict[str, Any]:
    return study(SMALL, *tiny, progress=False)


@pytest.mark.parametrize("name", ["logits", "sgd", "adam"])
def test_slope_tends_to_one_and_the_error_shrinks_quadratically(result: dict[str, Any], name: str) -> None:
    sweep = result["logits"] if name == "logits" else result["parameters"][name]
    rows = sweep["batches"][0]
    distance = [abs(row["slope"] - 1) for row in rows]
    assert distance == sorted(distance, reverse=True)
    assert distance[-1] < 5e-3
    assert rows[-1]["correlation"] > 0.9999
    assert sweep["rms_order"] == pytest.approx(2, abs=0.05)


def test_the_split_adds_up(result: dict[str, Any]) -> None:
    rows = [row for name in ("sgd", "adam") for row in result["shared"][name]["batches"]]
    rows += result["logits"]["batches"][0]
    for row in rows:
        for kind in ("predicted", "measured"):
            parts = sum(sum(phases.values()) for phases in row["split"][kind].values())
            assert parts == pytest.approx(row[kind], rel=1e-9, abs=1e-15)


def test_the_directional_derivative_is_that_of_the_gradient(tiny: Any) -> None:
    (batch,) = theory.sample_batches(
        TheorySettings(batches=1, questions=1, samples=4, max_tokens=40, seed=3), *tiny, progress=False
    )
    batch = theory.Batch(**{**vars(batch), "advantages": torch.linspace(-1, 1, len(batch.token_ids)).double()})
    moved = EntropyModel(tiny[0])
    step = step_direction(moved.gradient(batch), "sgd")
    parameters = {k: v.clone().requires_grad_() for k, v in moved.parameters.items()}
    gradients = torch.autograd.grad(moved.entropy(parameters, batch).sum(), list(parameters.values()))
    expected = sum(float((g * s).sum()) for g, s in zip(gradients, step.values(), strict=True))
    assert float(moved.direction(step, batch).sum()) == pytest.approx(expected, rel=1e-9)


def test_a_step_makes_tokens_with_a_positive_advantage_likelier(tiny: Any) -> None:
    (batch,) = theory.sample_batches(
        TheorySettings(batches=1, questions=1, samples=4, max_tokens=40, seed=3), *tiny, progress=False
    )
    batch = theory.Batch(**{**vars(batch), "advantages": torch.linspace(-1, 1, len(batch.token_ids)).double()})
    moved = EntropyModel(tiny[0])

    def objective(parameters: dict[str, torch.Tensor]) -> float:
        log_probs = moved.logits(parameters, batch).log_softmax(-1)
        chosen = log_probs[torch.arange(len(batch.token_ids)), batch.token_ids]
        return float((batch.advantages * chosen).sum()) / len(batch.token_ids)

    for optimizer in theory.OPTIMIZERS:
        step = step_direction(moved.gradient(batch), optimizer)
        # To first order the objective rises by gradient times step.
        slope = sum(float((-g * s).sum()) for g, s in zip(moved.gradient(batch).values(), step.values(), strict=True))
        after = objective({k: v + 1e-7 * step[k] for k, v in moved.parameters.items()})
        assert (after - objective(moved.parameters)) / 1e-7 == pytest.approx(slope, rel=1e-3)
        assert slope > 0


def test_the_model_is_left_as_it_was(tiny: Any, result: dict[str, Any]) -> None:
    model = tiny[0]
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert type(model.base_model.norm).__name__ == "Qwen3RMSNorm"


def test_order_ignores_rounding() -> None:
    rates = [1.0, 0.1, 0.01, 0.001]
    assert order_of(rates, [r**2 for r in rates]) == pytest.approx(2)
    assert order_of(rates, [r**2 + 1e-16 for r in rates[:2]] + [1e-17, 1e-17]) == pytest.approx(2)
    assert order_of(rates, [0.0] * 4) is None


def test_figure_and_table(result: dict[str, Any], tmp_path: Path) -> None:
    from studies.methods.theory_report import markdown, write_figure

    write_figure(result, tmp_path / "theory.png")
    assert (tmp_path / "theory.png").read_bytes()[:4] == b"\x89PNG"
    text = markdown(result)
    assert "| Adam | " in text
    assert text.count("\n| all |") == 1


@pytest.mark.parametrize(("field", "value"), [("batches", 0), ("samples", 1), ("swept", 0)])
def test_settings_name_what_is_out_of_range(field: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"{field} must be at least .* got {value}"):
        TheorySettings(**{field: value})
