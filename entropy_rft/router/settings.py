"""The router's settings: a YAML file, the environment (overrides the file), the command line (overrides both)."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    InitSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from entropy_rft.difficulty.strategies import Placement
from entropy_rft.errors import UserValueError
from entropy_rft.router.settings_parts import (
    AuthSettings,
    BackendSettings,
    BreakerSettings,
    FeatureSettings,
    HealthSettings,
    LimitSettings,
    RetrySettings,
    TimeoutSettings,
)
from entropy_rft.suggestions import did_you_mean

__all__ = [
    "DEFAULT_BUDGET",
    "EMBEDDED",
    "PREFIX",
    "AuthSettings",
    "BackendSettings",
    "BreakerSettings",
    "FeatureSettings",
    "HealthSettings",
    "LimitSettings",
    "RetrySettings",
    "RouterSettings",
    "TimeoutSettings",
    "load_settings",
]

PREFIX = "ENTROPY_RFT_ROUTER_"
EMBEDDED = "embedded"
DEFAULT_BUDGET = 16384  # tokens, where neither a client, nor the settings, nor a backend gives a limit
# Variables that Kubernetes sets for a Service called entropy-rft-router: they are not settings.
_SERVICE_LINK = re.compile(r"(SERVICE_(HOST|PORT.*)|PORT_\d+_.*)")


class RouterSettings(BaseSettings):
    """Everything that can be set; see `recipes/router/router.yaml` for a commented example.

    Raises:
        pydantic.ValidationError: use :func:`load_settings`, which reports it in one line.
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
    )

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    probe: str | None = None
    """Directory of a probe; `embedded` is the embedded model's. Without one every question is Normal."""
    model: str | None = None
    """Name or directory of the model whose tokenizer and hidden states are used; the probe's base model by default."""
    force_probe: bool = False
    """Use the probe with another model than its own."""
    served_model_name: str | None = None
    """What the backends call the model: it replaces a request's `model`, which is otherwise passed on unchanged."""
    strategies: dict[str, Any] | str | None = None
    """Strategies, or a YAML file of them; the probe's by default."""
    placement: Placement | None = None
    """Where a strategy's instruction goes: `system`, the system message, or `user_end`, the end of the last user
    message. By default the probe's; another one than the probe's is refused. `system` without a probe."""
    backends: Annotated[list[BackendSettings], NoDecode] = Field(default_factory=list)
    """None: the embedded model answers."""
    affinity: Literal["none", "conversation"] = "none"
    """Which backend is asked: the one with the fewest outstanding requests, or the one that a conversation's beginning
    hashes to, so that it has the earlier turns in its prefix cache; another one while that has more than 1.25 times its
    share of the outstanding requests."""
    timeouts: TimeoutSettings = TimeoutSettings()
    retries: RetrySettings = RetrySettings()
    breaker: BreakerSettings = BreakerSettings()
    health: HealthSettings = HealthSettings()
    features: FeatureSettings = FeatureSettings()
    limits: LimitSettings = LimitSettings()
    auth: AuthSettings = AuthSettings()
    mode: Literal["route", "shadow"] = "route"
    """`shadow` decides, measures and shows what it would set, but passes every request on unchanged."""
    rollout: float = Field(default=1.0, ge=0, le=1)
    """Share of the conversations to which `mode` applies; the others are passed on unchanged, and not probed."""
    rollout_salt: str = ""
    """Two experiments with different salts choose their conversations independently."""
    min_confidence: float = Field(default=0.5, ge=0, le=1)
    """Below it the question is Normal instead of the probe's choice; the default of `probe evaluate`."""
    max_tokens: int | None = Field(default=None, ge=1)
    """The budget of which a strategy takes its fraction when a client gives none. By default the context length that
    the backends report in /v1/models, else 16384; a fraction of 1 and /v1/completions then set nothing, so that the
    backends' own default applies."""
    client_max_tokens: Literal["override", "budget"] = "override"
    """A client's max_tokens is passed on unchanged, or is the budget of the fraction, so an upper bound."""
    client_reasoning_effort: Literal["override", "difficulty"] = "override"
    """A client's reasoning_effort (reasoning.effort of Responses, output_config.effort of Messages) overrides the
    strategy's, or low, medium and high stand for easy, normal and hard: they choose the strategy and are not passed
    on."""
    keep_difficulty: bool = True
    """Within a turn of an agent, the results of its tools included, the difficulty is never lowered."""
    ready_needs_features: bool = True
    """Whether /ready is 503 while the feature source is down. Requests are answered as Normal meanwhile. Use
    false where a load balancer would otherwise remove every replica at once."""
    tracing: bool = False
    """OpenTelemetry spans, which go where the environment's OTEL_ variables say; needs the extra `otel`."""
    reload: Literal["signal", "watch", "off"] = "signal"
    """Whether probe and strategies are loaded again on SIGHUP, or also when their files change (`watch`)."""
    cors_origins: Annotated[list[str], NoDecode] = Field(default_factory=list)
    """Origins of web pages that may call the router; none by default."""
    log_prompts: bool = False
    """Write the messages of each request to the log."""
    log_requests: bool = False
    """Write a line for each request."""
    log_format: Literal["json", "text"] = "json"
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    request_id_header: str = Field(default="x-request-id", pattern="^[a-z0-9-]+$")
    workers: int = Field(default=1, ge=1, le=256)
    """Processes that answer requests. They share the port, the metrics, the status page and the checks of the backends;
    each has its own cache of features, and its share of `limits.max_requests` and of each `max_outstanding`."""
    drain_s: float = Field(default=300.0, ge=0)
    """After SIGTERM, how long started requests may take."""
    drain_delay_s: float = Field(default=0.0, ge=0)
    """After SIGTERM, how long new requests are accepted while /ready answers 503, so that a balancer can notice."""

    @field_validator("backends", mode="before")
    @classmethod
    def _urls(cls, value: Any) -> Any:
        value = _listed(value)
        return (
            [{"url": item} if isinstance(item, str) else item for item in value] if isinstance(value, list) else value
        )

    @field_validator("reload", mode="before")
    @classmethod
    def _off(cls, value: Any) -> Any:
        return "off" if value is False else value  # YAML reads the bare word as false

    @field_validator("cors_origins", mode="before")
    @classmethod
    def _origins(cls, value: Any) -> Any:
        return _listed(value)

    @model_validator(mode="after")
    def _consistent(self) -> RouterSettings:
        names = [backend.name for backend in self.backends]
        for name in names:
            if names.count(name) > 1:
                raise UserValueError(f"backends: {name!r} occurs twice: give each a name of its own")
        if self.features.kind != "none" and self.probe is None:
            raise UserValueError("probe is missing: features need a probe that reads them")
        if self.workers > 1 and not self.backends:
            raise UserValueError(
                f"workers: {self.workers} need backends: the embedded model answers in one process (leave workers out)"
            )
        if self.workers > 1 and os.name != "posix":
            raise UserValueError(f"workers: {self.workers} processes can share a port only on Linux and macOS")
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, _Environment(settings_cls)


def _listed(value: Any) -> Any:
    """A list from the environment or the command line: JSON, or words separated by commas."""
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith(("[", "{")):
        try:
            decoded = json.loads(value)
        except ValueError:
            raise UserValueError("must be a JSON list, or addresses separated by commas") from None
        return [decoded] if isinstance(decoded, dict) else decoded
    return [word.strip() for word in value.split(",") if word.strip()]


class _Environment(EnvSettingsSource):
    """The environment without Kubernetes' service links, and with an error for an unknown name."""

    def __init__(self, settings_cls: type[BaseSettings]) -> None:
        super().__init__(settings_cls)
        ours = {name: value for name, value in os.environ.items() if name.upper().startswith(PREFIX)}
        for name, value in ours.items():
            rest = name[len(PREFIX) :]
            if _SERVICE_LINK.fullmatch(rest.upper()) or (rest.upper() == "PORT" and "://" in value):
                self.env_vars = {key: kept for key, kept in self.env_vars.items() if key != name.lower()}
                continue
            first = rest.lower().split("__")[0]
            if first not in settings_cls.model_fields:
                known = [PREFIX + field.upper() for field in settings_cls.model_fields]
                raise UserValueError(f"environment variable {name} is not a setting{did_you_mean(name, known)}")


def load_settings(
    path: str | os.PathLike[str] | None = None, overrides: Mapping[str, Any] | None = None
) -> RouterSettings:
    """Settings from a YAML file, the environment (``ENTROPY_RFT_ROUTER_LIMITS__MAX_BODY_BYTES=…``) and `overrides`.

    Later ones win, field by field.

    Raises:
        ValueError: the file cannot be read, a key is unknown, or a value is out of range; one line that names the key,
            the value and the nearest known key.
    """
    from_file = {} if path is None else _read(path)

    class Loaded(RouterSettings):
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return init_settings, _Environment(settings_cls), InitSettingsSource(settings_cls, from_file)

    try:
        return Loaded(**dict(overrides or {}))
    except ValidationError as error:
        raise UserValueError(_one_line(error)) from None
    except SettingsError as error:
        raise UserValueError(f"environment: {' '.join(str(error).split())} (it must be JSON)") from error


def _read(path: str | os.PathLike[str]) -> dict[str, Any]:
    from entropy_rft.files import load_yaml

    where = os.fspath(path)
    data = load_yaml(path, "configuration")
    if data is None:
        return {}
    if not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
        raise UserValueError(f"configuration {where!r} must map names to values, not be a {type(data).__name__}")
    return {key: value for key, value in data.items() if value is not None}  # a part that has only comments


def _one_line(error: ValidationError) -> str:
    """The first mistake: the setting, the value, and the fix."""
    mistakes = error.errors(include_url=False)
    mistake = next((each for each in mistakes if each["type"] == "extra_forbidden"), mistakes[0])
    location = [part for part in mistake["loc"] if not (isinstance(part, str) and part.startswith("function-"))]
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".")
    if mistake["type"] == "extra_forbidden":
        return f"there is no setting {where!r}{_nearest(location)}"
    message = mistake["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    if not where:
        return message
    value = mistake["input"]
    # An address with a password in it is refused, and not shown.
    hidden = mistake["type"] == "missing" or isinstance(value, dict | BaseModel) or "@" in str(value)
    shown = "" if hidden else f", got {_short(value)}"
    return f"{where}: {message}{shown}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."


def _nearest(location: list[Any]) -> str:
    """The known key that is nearest to the unknown one at `location`, with its part of the settings."""
    model: type[BaseModel] = RouterSettings
    for part in location[:-1]:
        if isinstance(part, int):
            continue
        for candidate in _models(model.model_fields[part].annotation):
            model = candidate
    word = str(location[-1])
    here = did_you_mean(word, model.model_fields)
    if here:
        return here
    inside = {
        name: f"{field}.{name}"
        for field, info in RouterSettings.model_fields.items()
        for part in _models(info.annotation)
        for name in part.model_fields
    }
    guess = did_you_mean(word, inside)
    for name, full in inside.items():
        if guess == f"; did you mean {name}?":
            return f"; did you mean {full}?"
    return guess


def _models(annotation: Any) -> Iterable[type[BaseModel]]:
    """The models that an annotation such as ``list[BackendSettings]`` names."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models(argument)]
