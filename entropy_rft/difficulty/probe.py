"""The classifier that predicts how hard a question is from the model's hidden state of it."""

from __future__ import annotations

import hashlib
import math
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from entropy_rft.difficulty.labels import Thresholds, class_indices
from entropy_rft.difficulty.network import KINDS, checked_states, initial_weights, logits
from entropy_rft.difficulty.optimisation import fit_weights
from entropy_rft.difficulty.probe_card import model_card
from entropy_rft.difficulty.probe_files import CONFIG, SCHEMA, read_config, read_weights, write_probe
from entropy_rft.difficulty.strategies import (
    DEFAULT_STRATEGIES,
    DIFFICULTIES,
    NAMES,
    Difficulty,
    Placement,
    Strategy,
    check_placement,
    strategies_from,
)
from entropy_rft.errors import UserValueError


class DifficultyProbe:
    """``softmax(W2 ReLU(W1 h + b1) + b2)`` over a standardised hidden state h, as in arXiv 2510.19669, or linear.

    The language model is not touched. The logits are divided by a temperature that is fitted on questions which the
    weights were not fitted to, so that the confidence is calibrated.

    Args:
        kind: "mlp" or "linear".
        hidden_units: width of the mlp's hidden layer.
        base_model: name of the model whose hidden states it reads.
        fingerprint: of that model's weights (`states.fingerprint`), if known.
        layer: of the hidden state, as in transformers' `hidden_states`; -1 is the last, after the final norm.
        thresholds: that made the labels.
        strategies: what to do about each difficulty.
        placement: where their instructions go. The probe itself reads a question without one, because it is asked
            before there is one; but its strategies are measured with this placement, and served with no other.
        seed: of the initial weights, the split and the order of the batches.

    Attributes:
        width: size of the hidden state; ``None`` before `fit`.
        metrics: its measurements, plain JSON values.
        questions: ids of the questions it was fitted to, whatever their wording (`Traces.questions`), so that no one
            tests on them.

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
        placement: Placement = "system",
        seed: int = 0,
    ) -> None:
        if kind not in KINDS:
            raise UserValueError(f"kind must be mlp or linear, not {kind!r}")
        if isinstance(hidden_units, bool) or not isinstance(hidden_units, int) or hidden_units < 1:
            raise UserValueError(f"hidden_units must be a whole number of at least 1, got {hidden_units!r}")
        missing = [difficulty.value for difficulty in DIFFICULTIES if difficulty not in strategies]
        if missing:
            raise UserValueError(f"strategies has none for {', '.join(missing)}")
        self.kind = kind
        self.hidden_units = hidden_units
        self.base_model = base_model
        self.fingerprint = fingerprint
        self.layer = layer
        self.thresholds = thresholds
        self.strategies = dict(strategies)
        self.placement = check_placement(placement)
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
            ValueError: shapes that differ, a value that is not finite, fewer than 2 groups, or nothing could be
                learned; the probe is not changed.
        """
        states = checked_states(hidden)
        targets = torch.from_numpy(class_indices(labels))
        names = [str(i) for i in range(len(states))] if groups is None else [str(group) for group in groups]
        if not len(states) == len(targets) == len(names):
            raise UserValueError(
                f"hidden, labels and groups must have the same length, got {len(states)}, {len(targets)}, {len(names)}"
            )
        fit = fit_weights(
            states,
            targets,
            names,
            kind=self.kind,
            hidden_units=self.hidden_units,
            validation_fraction=validation_fraction,
            epochs=epochs,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            batch_size=batch_size,
            patience=patience,
            balanced=balanced,
            seed=self.seed,
        )
        self._tensors, self.temperature, self.metrics = fit.tensors, fit.temperature, {"fit": fit.metrics}
        self.questions = sorted(set(names)) if groups is not None else []
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
            raise UserValueError("the probe is not fitted: call fit, or load one with from_pretrained")
        states = checked_states(hidden)
        if states.shape[1] != self.width:
            raise UserValueError(
                f"hidden has the width {states.shape[1]}, but this probe reads {self.width}{self._whose()}"
            )
        return (logits(self._tensors, states) / self.temperature).softmax(-1)

    def on(self, device: Any) -> Callable[[Tensor], Tensor]:
        """`predict_proba` on another device: (N, D) floats there to (N, 3) float32 there.

        Nothing is checked or copied to the CPU: a state that is not finite gives NaN. The device gets its own weights.

        Raises:
            ValueError: the probe is not fitted.
        """
        if not self._tensors:
            raise UserValueError("the probe is not fitted: call fit, or load one with from_pretrained")
        tensors, temperature = {name: tensor.to(device) for name, tensor in self._tensors.items()}, self.temperature

        def predict(states: Tensor) -> Tensor:
            return (logits(tensors, states.float()) / temperature).softmax(-1)

        return predict

    def digest(self) -> str:
        """64 hex digits of what its results depend on: kind, layer, temperature and weights."""
        found = hashlib.sha256(repr((self.kind, self.layer, self.temperature)).encode())
        for name, tensor in self._tensors.items():
            found.update(f"{name} {tuple(tensor.shape)}".encode() + tensor.contiguous().numpy().tobytes())
        return found.hexdigest()

    def predict(self, hidden: Any, min_confidence: float = 0.0) -> list[Difficulty]:
        """The difficulty of each state, as :func:`choose` of its probabilities."""
        return choose(self.predict_proba(hidden), min_confidence)

    def save_pretrained(self, directory: str | os.PathLike[str]) -> None:
        """Write `probe.safetensors`, `probe.json` and a model card. Each file is replaced in one step, the JSON last.

        Raises:
            ValueError: the probe is not fitted.
        """
        if not self._tensors:
            raise UserValueError("the probe is not fitted: call fit before save_pretrained")
        write_probe(Path(directory), self.to_dict(), self._tensors, model_card(self))

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
            "placement": self.placement,
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
                its weights, not by its name. ``None`` checks nothing.
            force: only warn where that is not the model it was made for.

        Raises:
            ValueError: a file is missing or corrupted, or `base_model` is another model; one line.
        """
        source = Path(directory).expanduser()
        data = read_config(source)
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
                placement=data.get("placement", "system"),  # which files of earlier versions do not name
                seed=data["seed"],
            )
            probe.temperature = float(data["temperature"])
            probe.metrics, probe.questions, width = data["metrics"], data["questions"], data["width"]
            if data["classes"] != list(NAMES) or not 0 < probe.temperature < math.inf or width < 1:
                raise UserValueError("classes, temperature or width is out of range")
        except (ValueError, TypeError) as error:
            raise UserValueError(f"probe {str(source / CONFIG)!r} is malformed: {error}") from error
        probe._tensors = read_weights(source, probe._shapes(width))
        difference = probe._difference(base_model)
        if difference and not force:
            raise UserValueError(f"{difference}: its hidden states mean something else (force=True uses it anyway)")
        if difference:
            warnings.warn(f"{difference}: its results for this model's questions are unreliable", stacklevel=2)
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
            found = fingerprint(base_model, like=self.fingerprint) if self.fingerprint is not None else None
            matches = found == self.fingerprint if found else same_model(self.base_model or name, name)
        return None if matches else f"the probe was made for the base model {self.base_model!r}, not for {name!r}"

    def _whose(self) -> str:
        return f", the hidden states of {self.base_model!r}" if self.base_model else ""

    def _shapes(self, width: int) -> dict[str, tuple[int, ...]]:
        weights = initial_weights(self.kind, width, self.hidden_units, torch.Generator())
        return {"mean": (width,), "std": (width,), **{name: tuple(tensor.shape) for name, tensor in weights.items()}}


def choose(proba: Any, min_confidence: float = 0.0) -> Any:
    """The most probable difficulty, or NORMAL where its probability is below `min_confidence`.

    Args:
        proba: (N, 3), or (3,) of one question.
        min_confidence: between 0 (never fall back) and 1.

    Returns:
        A list of N difficulties, or one.

    Raises:
        ValueError: another shape, a value that is not a probability, or `min_confidence` out of range.
    """
    if not 0 <= min_confidence <= 1:
        raise UserValueError(f"min_confidence must lie between 0 and 1, got {min_confidence}")
    values = np.asarray(proba, dtype=np.float64)
    if values.ndim not in (1, 2) or values.shape[-1] != len(DIFFICULTIES):
        raise UserValueError(f"proba must have the shape (N, 3) or (3,), got {values.shape}")
    if not (np.isfinite(values) & (values >= 0) & (values <= 1 + 1e-6)).all():
        raise UserValueError("proba must hold probabilities, between 0 and 1")
    chosen = [
        DIFFICULTIES[int(row.argmax())] if row.max() >= min_confidence else Difficulty.NORMAL
        for row in np.atleast_2d(values)
    ]
    return chosen if values.ndim == 2 else chosen[0]
