"""The settings of the router inside a server: those of `RouterSettings` that have a meaning there."""

from __future__ import annotations

import os

from entropy_rft.difficulty.served import ENV
from entropy_rft.errors import UserValueError
from entropy_rft.router.settings import PREFIX, RouterSettings, load_settings
from entropy_rft.router.settings_parts import BackendSettings, HealthSettings, RetrySettings

CONFIG_ENV = "ENTROPY_RFT_CONFIG"
"""Environment variable of the server: a YAML file of the router's settings. Without it the defaults are used."""

_URL, _NAME = "http://this-server", "vllm"  # the address is never connected to
# What these set is the server's own: its address, its keys, its time limits. Its answers are passed on as they are.
_OF_THE_SERVER = (
    "host", "port", "backends", "timeouts", "retries", "breaker", "health", "auth", "cors_origins", "drain_s",
    "drain_delay_s", "ready_needs_features",
)  # fmt: skip
_LIMITS = ("max_body_bytes", "max_json_depth", "max_requests", "body_timeout_s", "max_buffered_bytes")


def load_middleware_settings() -> RouterSettings:
    """Settings from the file that `CONFIG_ENV` names and from the environment (``ENTROPY_RFT_ROUTER_…``).

    The probe is the engine's, which ``ENTROPY_RFT_PROBE`` names; `features.kind` is then vllm by default.

    Raises:
        ValueError: a setting is wrong, belongs to the server itself, or the probe is missing; one line.
    """
    probe = os.environ.get(ENV) or None
    settings = load_settings(os.environ.get(CONFIG_ENV) or None, {} if probe is None else {"probe": probe})
    for name in _OF_THE_SERVER:
        if name in settings.model_fields_set:
            raise UserValueError(
                f"{name} is not a setting of the middleware, because the server that it runs in has its own: remove it "
                f"from {CONFIG_ENV}'s file and from the environment ({PREFIX}{name.upper()})"
            )
    for name in sorted(settings.limits.model_fields_set - set(_LIMITS)):
        raise UserValueError(
            f"limits.{name} is not a setting of the middleware: remove it (known: {', '.join(_LIMITS)})"
        )
    features = settings.features
    if "kind" not in features.model_fields_set:
        if probe is None:
            raise UserValueError(
                f"{ENV} is not set: name the probe's directory, so that the engine evaluates it; or set features.kind "
                f"in the file of {CONFIG_ENV} (none: only clients choose the difficulty)"
            )
        features = features.model_copy(update={"kind": "vllm"})
    elif features.kind == "vllm" and features.url is None and probe is None:
        raise UserValueError(f"{ENV} is not set: features.kind vllm needs an engine that evaluates the probe")
    return settings.model_copy(
        update={
            "features": features,
            "backends": [BackendSettings(url=_URL, name=_NAME)],
            "health": HealthSettings(path="/health"),
            "retries": RetrySettings(attempts=1),
            # A signal would end the server otherwise, as when its terminal is closed: that stays, unless asked for.
            "reload": settings.reload if "reload" in settings.model_fields_set else "off",
        }
    )
