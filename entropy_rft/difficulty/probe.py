"""The classifier that tells how hard a question is from the model's hidden state of it."""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from entropy_rft.difficulty.labels import Thresholds, class_indices
from entropy_rft.difficulty.strategies import (
    DEFAULT_STRATEGIES,
    DIFFICULTIES,
    NAMES,
    Difficulty,
    Strategy,
    strategies_from,
)

CONFIG, WEIGHTS, CARD = "probe.json", "probe.safetensors", "README.md"
SCHEMA = 1
KINDS = ("mlp", "linear")


class DifficultyProbe:
    """``softmax(W2 ReLU(W1 h + b1) + b2)`` over a standardised hidden state h, as in arXiv 2510.19669, or linear.

    The language model is not touched. The logits are divided by a temperature that is fitted on questions which the
    weights were not fitted to, so that the confidence means something.

    Args:
        kind: "mlp" or "linear".
        hidden_units: width of the mlp's hidden layer.
        base_model: name of the model whose hidden states it reads.
        fingerprint: of that model's weights (`states.fingerprint`), if known.
        layer: of the hidden state, as in transformers' `hidden_states`; -1 is the last, after the final norm.
        thresholds: that made the labels.
        strategies: what to do about each difficulty.
        seed: of the initial weights, the split and the order of the batches.

    Attributes:
        width: size of the hidden state; ``None`` before `fit`.
        metrics: what was measured of it, plain JSON values.
        questions: ids of the questions it was fitted to (`traces.question_id`), so that no one tests on them.

    Raises:
        ValueError: an unknown kind, or a width below 1.
    """

    def __init__(
        self,
        kind: str = "mlp",
        *,
        hidden_units: int = 256,
        base_model: str | None = None,
        fingerprint: str | None = None,
        layer: int = -1,
        thresholds: Thresholds | None = None,
        strategies: Mapping[Difficulty, Strategy] = DEFAULT_STRATEGIES,
        seed: int = 0,
    ) -> None:
        if kind not in KINDS:
            raise ValueError(f"kind must be mlp or linear, not {kind!r}")
        if isinstance(hidden_units, bool) or not isinstance(hidden_units, int) or hidden_units < 1:
            raise ValueError(f"hidden_units must be a whole number of at least 1, got {hidden_units!r}")
        missing = [difficulty.value for difficulty in DIFFICULTIES if difficulty not in strategies]
        if missing:
            raise ValueError(f"strategies has none for {', '.join(missing)}")
        self.kind = kind
        self.hidden_units = hidden_units
        self.base_model = base_model
        self.fingerprint = fingerprint
        self.layer = layer
        self.thresholds = thresholds
        self.strategies = dict(strategies)
        self.seed = seed
        self.metrics: dict[str, Any] = {}
        self.questions: list[str] = []
        self.temperature = 1.0
        self._tensors: dict[str, Tensor] = {}

    @property
    def width(self) -> int | None:
        return len(self._tensors["mean"]) if self._tensors else None

    def fit(
        self,
        hidden: Any,
        labels: Any,
        *,
        groups: Sequence[Any] | None = None,
        validation_fraction: float = 0.2,
        epochs: int = 100,
        learning_rate: float = 1e-3,
        weight_decay: float = 0.01,
        batch_size: int = 64,
        patience: int = 15,
        balanced: bool = True,
    ) -> DifficultyProbe:
        """Fit to labelled hidden states; the same seed gives the same probe.

        AdamW on the cross-entropy, for at most `epochs` and until the validation loss has not fallen for `patience` of
        them; the best epoch's weights are kept. The temperature is then the one with the smallest unweighted validation
        loss.

        Args:
            hidden: (N, D), finite.
            labels: N `Difficulty` or their names.
            groups: what each row belongs to, a question's id: a group is never on both sides of the split. By default
                every row is a group.
            validation_fraction: of the groups, for the early stop and the temperature.
            epochs: at most.
            learning_rate: of AdamW.
            weight_decay: of AdamW.
            batch_size: rows.
            patience: epochs.
            balanced: weigh each class by the inverse of its share, so that a rare one is not ignored.

        Returns:
            The probe itself.

        Raises:
            ValueError: shapes that differ, a value that is not finite, or fewer than 2 groups.
        """
        states = _states(hidden)
        targets = torch.from_numpy(class_indices(labels))
        names = [str(i) for i in range(len(states))] if groups is None else [str(group) for group in groups]
        if not len(states) == len(targets) == len(names):
            raise ValueError(
                f"hidden, labels and groups must have the same length, got {len(states)}, {len(targets)}, {len(names)}"
            )
        for name, count in (("epochs", epochs), ("batch_size", batch_size), ("patience", patience)):
            if count < 1:
                raise ValueError(f"{name} must be at least 1, got {count}")
        validating = split_groups(names, validation_fraction, self.seed)
        train, held_out = np.flatnonzero(~validating), np.flatnonzero(validating)
        if not len(train) or not len(held_out):
            raise ValueError(f"a probe needs at least 2 different questions, got {len(set(names))}")
        generator = torch.Generator().manual_seed(self.seed)
        mean = states[train].mean(0)
        deviation = states[train].std(0, correction=0)
        # A feature that does not vary says nothing; dividing by its rounding noise would make a weight of it.
        deviation = torch.where(deviation > 1e-6, deviation, torch.ones_like(deviation))
        self._tensors = {"mean": mean, "std": deviation, **self._initial(states.shape[1], generator)}
        weights = _class_weights(targets[train]) if balanced else torch.ones(len(DIFFICULTIES))
        parameters = [tensor for name, tensor in self._tensors.items() if name not in ("mean", "std")]
        for parameter in parameters:
            parameter.requires_grad_(True)
        optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=weight_decay)
        best, best_loss, best_epoch, epoch = [p.detach().clone() for p in parameters], math.inf, 0, 0
        for epoch in range(1, epochs + 1):
            order = train[torch.randperm(len(train), generator=generator).numpy()]
            for start in range(0, len(order), batch_size):
                batch = order[start : start + batch_size]
                optimizer.zero_grad()
                functional.cross_entropy(self._logits(states[batch]), targets[batch], weights).backward()
                optimizer.step()
            with torch.no_grad():
                loss = float(functional.cross_entropy(self._logits(states[held_out]), targets[held_out], weights))
            if loss < best_loss:
                best, best_loss, best_epoch = [p.detach().clone() for p in parameters], loss, epoch
            elif epoch - best_epoch >= patience:
                break
        for parameter, value in zip(parameters, best, strict=True):
            parameter.requires_grad_(False).copy_(value)
        with torch.no_grad():
            self.temperature = _best_temperature(self._logits(states[held_out]), targets[held_out])
        self.questions = sorted(set(names)) if groups is not None else []
        fit = {"rows": len(train), "validation_rows": len(held_out), "epochs": epoch, "best_epoch": best_epoch}
        self.metrics = {"fit": fit}
        return self

    @torch.no_grad()
    def predict_proba(self, hidden: Any) -> Tensor:
        """Probabilities of EASY, NORMAL and HARD.

        Args:
            hidden: (N, D) or one state (D,), floats of any kind.

        Returns:
            (N, 3) float32 on the CPU.

        Raises:
            ValueError: the probe is not fitted, or `hidden` has another width, or NaN or infinite values.
        """
        if not self._tensors:
            raise ValueError("the probe is not fitted: call fit, or load one with from_pretrained")
        states = _states(hidden)
        if states.shape[1] != self.width:
            raise ValueError(
                f"hidden has the width {states.shape[1]}, but this probe reads {self.width}{self._whose()}"
            )
        return (self._logits(states) / self.temperature).softmax(-1)

    def predict(self, hidden: Any, min_confidence: float = 0.0) -> list[Difficulty]:
        """The difficulty of each state, as :func:`choose` of its probabilities."""
        return choose(self.predict_proba(hidden), min_confidence)

    def save_pretrained(self, directory: str | os.PathLike[str]) -> None:
        """Write `probe.safetensors`, `probe.json` and a model card. Each file is replaced in one go, the JSON last.

        Raises:
            ValueError: the probe is not fitted.
        """
        from safetensors.torch import save

        if not self._tensors:
            raise ValueError("the probe is not fitted: call fit before save_pretrained")
        target = Path(directory)
        target.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n"
        _replace(target / WEIGHTS, save({name: tensor.contiguous() for name, tensor in self._tensors.items()}))
        _replace(target / CARD, _card(self).encode())
        _replace(target / CONFIG, text.encode())

    def to_dict(self) -> dict[str, Any]:
        """Everything but the weights, plain JSON values."""
        return {
            "schema": SCHEMA,
            "kind": self.kind,
            "width": self.width,
            "hidden_units": self.hidden_units,
            "base_model": self.base_model,
            "fingerprint": self.fingerprint,
            "layer": self.layer,
            "classes": list(NAMES),
            "temperature": self.temperature,
            "thresholds": None if self.thresholds is None else asdict(self.thresholds),
            "strategies": {difficulty.value: self.strategies[difficulty].to_dict() for difficulty in DIFFICULTIES},
            "seed": self.seed,
            "metrics": self.metrics,
            "questions": self.questions,
        }

    @classmethod
    def from_pretrained(
        cls,
        directory: str | os.PathLike[str],
        *,
        base_model: Any = None,
        force: bool = False,
    ) -> DifficultyProbe:
        """Load what `save_pretrained` wrote. Nothing is unpickled.

        Args:
            directory: with `probe.json` and `probe.safetensors`.
            base_model: the model whose hidden states it will read: a name, or the model itself, which is recognised by
                its weights whatever it is called. ``None`` checks nothing.
            force: only warn where that is not the model it was made for.

        Raises:
            ValueError: a file is missing or corrupted, or `base_model` is another model; one line.
        """
        source = Path(directory).expanduser()
        data = _read_config(source)
        try:
            thresholds = data["thresholds"]
            probe = cls(
                data["kind"],
                hidden_units=data["hidden_units"],
                base_model=data["base_model"],
                fingerprint=data["fingerprint"],
                layer=data["layer"],
                thresholds=None if thresholds is None else Thresholds(**thresholds),
                strategies=strategies_from(data["strategies"]),
                seed=data["seed"],
            )
            probe.temperature = float(data["temperature"])
            probe.metrics, probe.questions = dict(data["metrics"]), list(data["questions"])
            width = int(data["width"])
            if data["classes"] != list(NAMES) or not 0 < probe.temperature < math.inf or width < 1:
                raise ValueError("classes, temperature or width is out of range")
        except KeyError as error:
            raise ValueError(f"probe {str(source / CONFIG)!r} has no field {error.args[0]!r}") from error
        except (ValueError, TypeError) as error:
            raise ValueError(f"probe {str(source / CONFIG)!r} is malformed: {error}") from error
        probe._tensors = _read_weights(source, probe._initial(width, torch.Generator()), width)
        difference = probe._difference(base_model)
        if difference and not force:
            raise ValueError(f"{difference}: its hidden states mean something else (force=True uses it all the same)")
        if difference:
            warnings.warn(f"{difference}: what it says of this model's questions is a guess", stacklevel=2)
        return probe

    def _difference(self, base_model: Any) -> str | None:
        """What is wrong with reading the hidden states of `base_model`, or ``None``."""
        from entropy_rft.difficulty.states import fingerprint, same_model

        if base_model is None or (self.base_model is None and self.fingerprint is None):
            return None
        if isinstance(base_model, str | os.PathLike):
            name = os.fspath(base_model)
            matches = self.base_model is None or same_model(self.base_model, name)
        else:
            name = str(getattr(base_model, "name_or_path", "")) or type(base_model).__name__
            found = fingerprint(base_model) if self.fingerprint is not None else None
            matches = found == self.fingerprint if found else same_model(self.base_model or name, name)
        return None if matches else f"the probe was made for the base model {self.base_model!r}, not for {name!r}"

    def _whose(self) -> str:
        return f", the hidden states of {self.base_model!r}" if self.base_model else ""

    def _initial(self, width: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Weights as torch's Linear starts, drawn from the probe's own random numbers."""
        sizes = [width, self.hidden_units, len(DIFFICULTIES)] if self.kind == "mlp" else [width, len(DIFFICULTIES)]
        tensors = {}
        for number, (inputs, outputs) in enumerate(pairwise(sizes), start=1):
            bound = 1 / math.sqrt(inputs)
            tensors[f"w{number}"] = (torch.rand(outputs, inputs, generator=generator) * 2 - 1) * bound
            tensors[f"b{number}"] = (torch.rand(outputs, generator=generator) * 2 - 1) * bound
        return tensors

    def _logits(self, states: Tensor) -> Tensor:
        tensors = self._tensors
        output = functional.linear((states - tensors["mean"]) / tensors["std"], tensors["w1"], tensors["b1"])
        if self.kind == "mlp":
            output = functional.linear(output.relu(), tensors["w2"], tensors["b2"])
        return output


def choose(proba: Any, min_confidence: float = 0.0) -> Any:
    """The most probable difficulty, or NORMAL where its probability is below `min_confidence`.

    Args:
        proba: (N, 3), or (3,) of one question.
        min_confidence: between 0 (never fall back) and 1.

    Returns:
        A list of N difficulties, or one.

    Raises:
        ValueError: another shape, a value that is no probability, or `min_confidence` out of range.
    """
    if not 0 <= min_confidence <= 1:
        raise ValueError(f"min_confidence must lie between 0 and 1, got {min_confidence}")
    values = np.asarray(proba, dtype=np.float64)
    if values.ndim not in (1, 2) or values.shape[-1] != len(DIFFICULTIES):
        raise ValueError(f"proba must have the shape (N, 3) or (3,), got {values.shape}")
    if not (np.isfinite(values) & (values >= 0) & (values <= 1 + 1e-6)).all():
        raise ValueError("proba must hold probabilities, between 0 and 1")
    chosen = [
        DIFFICULTIES[int(row.argmax())] if row.max() >= min_confidence else Difficulty.NORMAL
        for row in np.atleast_2d(values)
    ]
    return chosen if values.ndim == 2 else chosen[0]


def split_groups(groups: Sequence[str], fraction: float, seed: int) -> np.ndarray:
    """Which rows are held out, (N,) bool: `fraction` of the groups, at least one of them and never all.

    Raises:
        ValueError: `fraction` is out of range.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"the held-out fraction must lie between 0 and 1, got {fraction}")
    names = sorted(set(groups))  # so that the order of the rows plays no part
    order = np.random.default_rng(seed).permutation(len(names))
    count = min(max(1, round(fraction * len(names))), len(names) - 1)
    held_out = {names[i] for i in order[:count]}
    return np.asarray([group in held_out for group in groups], dtype=bool)


def _states(hidden: Any) -> Tensor:
    """(N, D) float32 on the CPU, checked."""
    if isinstance(hidden, Tensor):
        states = hidden.detach().to("cpu", torch.float32)
    else:
        states = torch.from_numpy(np.array(hidden, dtype=np.float32))
    if states.ndim == 1:
        states = states[None]
    if states.ndim != 2 or not states.shape[1]:
        raise ValueError(f"hidden must have the shape (N, D), got {tuple(states.shape)}")
    bad = ~states.isfinite().all(-1)
    if bool(bad.any()):
        raise ValueError(f"hidden has NaN or infinite values in row {int(bad.nonzero()[0])}: check the model's dtype")
    return states


def _class_weights(targets: Tensor) -> Tensor:
    """Inverse shares, so that every class that occurs weighs the same in total; (3,)."""
    counts = torch.bincount(targets, minlength=len(DIFFICULTIES)).float()
    return torch.where(counts > 0, len(targets) / ((counts > 0).sum() * counts.clamp(min=1)), torch.zeros(()))


def _best_temperature(logits: Tensor, targets: Tensor) -> float:
    """The temperature between 0.05 and 20 with the smallest cross-entropy, to 1 %; a grid cannot miss or diverge."""
    grid = torch.logspace(math.log10(0.05), math.log10(20), 603, dtype=torch.float64)
    losses = torch.stack([functional.cross_entropy(logits.double() / t, targets) for t in grid])
    return float(grid[int(losses.argmin())])


def _read_config(source: Path) -> dict[str, Any]:
    path = source / CONFIG
    if not path.is_file():
        raise ValueError(f"probe {str(source)!r} has no {CONFIG}: give a directory that save_pretrained wrote")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ValueError(f"probe {str(path)!r} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        found = data.get("schema") if isinstance(data, dict) else type(data).__name__
        raise ValueError(f"probe {str(path)!r} is of schema {found!r}, not {SCHEMA}")
    return data


def _read_weights(source: Path, like: dict[str, Tensor], width: int) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = source / WEIGHTS
    expected = {"mean": (width,), "std": (width,), **{name: tuple(tensor.shape) for name, tensor in like.items()}}
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else " ".join(str(error).split())
        raise ValueError(f"probe {str(path)!r} cannot be read: {reason}") from error
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if found != expected:
        wrong = next(name for name in sorted({*found, *expected}) if found.get(name) != expected.get(name))
        raise ValueError(
            f"probe {str(path)!r} does not fit its {CONFIG}: {wrong} has the shape {found.get(wrong)}, "
            f"expected {expected.get(wrong)}"
        )
    for name, tensor in tensors.items():
        if tensor.dtype != torch.float32 or not bool(tensor.isfinite().all()):
            raise ValueError(f"probe {str(path)!r} is corrupted: {name} is not finite float32")
    # In the order of the formula, whatever the file's.
    return {name: tensors[name] for name in expected}


def _replace(path: Path, data: bytes) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        partial.write_bytes(data)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _card(probe: DifficultyProbe) -> str:
    """The model card: what it reads, what it says, how it was made and how good it is."""
    lines = ["---", "library_name: entropy_rft", "tags: [difficulty-probe, entropy]"]
    if probe.base_model and probe.base_model.count("/") == 1 and not probe.base_model.startswith((".", "/", "~")):
        lines.append(f"base_model: {probe.base_model}")
    thresholds = probe.thresholds
    lines += [
        "---",
        "",
        "# Difficulty probe",
        "",
        "Tells from the hidden state of a question's last token whether the question is easy, normal or hard for one",
        "language model, before that model answers (DiffAdapt, arXiv 2510.19669). Load it with",
        "`entropy_rft.difficulty.DifficultyProbe.from_pretrained`.",
        "",
        "| | |",
        "| --- | --- |",
        f"| base model | `{probe.base_model}` |",
        f"| layer | {probe.layer}{' (the last, after the final norm)' if probe.layer == -1 else ''} |",
        f"| width | {probe.width} |",
        f"| kind | {probe.kind}{f', {probe.hidden_units} hidden units' if probe.kind == 'mlp' else ''} |",
        f"| calibration temperature | {probe.temperature:.3f} |",
        f"| seed | {probe.seed} |",
    ]
    if thresholds is not None:
        lines.append(
            f"| labels | normal: accuracy ≥ {thresholds.accuracy_normal:g} and entropy ≤ {thresholds.entropy_normal:g} "
            f"nats; hard: accuracy < {thresholds.accuracy_hard:g}; easy otherwise |"
        )
    test = probe.metrics.get("test")
    if test:
        lines += [
            f"| held-out questions | {test['questions']} |",
            f"| accuracy | {test['accuracy']:.3f} |",
            f"| macro-F1 | {test['macro_f1']:.3f} |",
            f"| calibration error | {test['calibration_error']:.3f} |",
        ]
    lines += ["", "| difficulty | instruction | temperature | share of the tokens |", "| --- | --- | ---: | ---: |"]
    for difficulty in DIFFICULTIES:
        strategy = probe.strategies[difficulty]
        instruction = " ".join(strategy.instruction.replace("|", "\\|").split())
        lines.append(
            f"| {difficulty.value} | {instruction} | {strategy.temperature:g} | {strategy.max_tokens_fraction:g} |"
        )
    lines += ["", "It means nothing for another model, another layer or questions of another kind.", ""]
    return "\n".join(lines)
