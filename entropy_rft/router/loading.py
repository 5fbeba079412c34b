"""The probe and the strategies that the settings name, and where instructions go."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from entropy_rft.difficulty.strategies import (
    DEFAULT_STRATEGIES,
    Difficulty,
    Placement,
    Strategy,
    load_strategies,
    strategies_from,
)
from entropy_rft.errors import UserValueError
from entropy_rft.router.settings import EMBEDDED, RouterSettings


@dataclass(frozen=True)
class Chosen:
    """What the decisions depend on.

    Attributes:
        settings: of the router.
        probe: or ``None``.
        strategies: one for each difficulty.
        placement: of their instructions.
    """

    settings: RouterSettings
    probe: Any
    strategies: Mapping[Difficulty, Strategy]
    placement: Placement


def check_kind(settings: RouterSettings) -> None:
    """Raise a ValueError, one line, where a probe is set and nothing says where its hidden states come from."""
    if settings.probe is not None and "kind" not in settings.features.model_fields_set:
        raise UserValueError(
            "features.kind is missing: a probe needs hidden states: set vllm, local, or vllm_pooling and its url "
            "(none: only clients choose the difficulty)"
        )


def load_chosen(settings: RouterSettings, probe: Any = None) -> Chosen:
    """What the settings name; `probe` is used instead of theirs.

    Raises:
        ValueError: the probe or the strategies cannot be loaded, or do not fit each other; one line.
    """
    if probe is None:
        probe = load_probe(settings)
    return Chosen(settings, probe, strategies_of(settings, probe), placement_of(settings, probe))


def load_probe(settings: RouterSettings) -> Any:
    """The probe that the settings name, or ``None``.

    Raises:
        ValueError: it cannot be loaded, or is for another model; one line.
    """
    if settings.probe is None:
        return None
    from entropy_rft.assets import DEFAULT_PROBE
    from entropy_rft.difficulty import DifficultyProbe

    directory = DEFAULT_PROBE if settings.probe == EMBEDDED else settings.probe
    return DifficultyProbe.from_pretrained(directory, base_model=settings.model, force=settings.force_probe)


def strategies_of(settings: RouterSettings, probe: Any) -> Mapping[Difficulty, Strategy]:
    """The strategies that the settings give, else the probe's, else the default ones.

    Raises:
        ValueError: they are malformed; one line.
    """
    if isinstance(settings.strategies, str):
        return load_strategies(settings.strategies)
    if settings.strategies is not None:
        return strategies_from(settings.strategies)
    return probe.strategies if probe is not None else DEFAULT_STRATEGIES


def placement_of(settings: RouterSettings, probe: Any) -> Placement:
    """Where instructions go: as the probe's strategies were measured; without a probe as the settings say.

    Raises:
        ValueError: the settings name another placement than the probe's; one line.
    """
    own: Placement = getattr(probe, "placement", "system")
    if probe is None:
        return settings.placement or own
    if settings.placement not in (None, own):
        raise UserValueError(
            f"placement: the probe was made for {own}, not {settings.placement}: leave it out, or train the probe "
            f"again with --placement {settings.placement}"
        )
    return own
