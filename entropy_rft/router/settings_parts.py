"""The parts of the router's settings: each a small model that refuses unknown keys."""

from __future__ import annotations

from typing import Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from entropy_rft.errors import UserValueError
from entropy_rft.router.keys import read_key, read_keys


class Part(BaseModel):
    """A part of the settings: an unknown key is an error, and nothing changes after start."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def check_address(url: str, name: str = "") -> None:
    """Raise a ValueError, which begins with `name`, for an address whose host or port cannot be read."""
    try:
        _ = urlsplit(url).port
    except ValueError as error:
        raise UserValueError(f"{name}is not an address: {error}") from error


class BackendSettings(Part):
    """A server that speaks OpenAI's protocol. A plain URL in the list is one with the defaults."""

    url: str
    """With or without `/v1`."""
    name: str = ""
    """In metrics and logs; host and port when empty."""
    weight: float = Field(default=1.0, gt=0)
    """Of two backends the one with the fewer outstanding requests per weight gets the next."""
    max_outstanding: int = Field(default=1024, ge=1)
    """Requests at the same time; the next one goes to another backend, or gets 503 with Retry-After."""
    api_key_env: str | None = None
    """Environment variable with the key that this backend requires."""
    api_key_file: str | None = None
    """File with that key."""

    @field_validator("url")
    @classmethod
    def _http(cls, url: str) -> str:
        if not url.startswith(("http://", "https://")) or len(url.split("/", 3)[2]) == 0:
            raise UserValueError("must be an address such as http://10.0.0.1:8000")
        if "@" in url.split("/", 3)[2]:
            raise UserValueError("must not hold a user or a password: give api_key_env or api_key_file")
        check_address(url)
        return url.rstrip("/").removesuffix("/v1")

    @model_validator(mode="after")
    def _named(self) -> BackendSettings:
        if not self.name:
            object.__setattr__(self, "name", self.url.split("/", 3)[2])
        return self

    def api_key(self) -> str | None:
        """The key, or ``None``. Raises a ValueError when it is configured and cannot be read."""
        return read_key(f"backend {self.name}", self.api_key_env, self.api_key_file)


class TimeoutSettings(Part):
    """Seconds to wait for a backend."""

    connect_s: float = Field(default=3.0, gt=0)
    """For a connection, the DNS lookup included."""
    first_byte_s: float = Field(default=600.0, gt=0)
    """Until the answer's head; for an answer that is not streamed this is the whole generation."""
    between_bytes_s: float = Field(default=60.0, gt=0)


class RetrySettings(Part):
    """Only where nothing can have been generated: no connection, 429, 503. After a time-out, a 500 or a lost connection
    the client gets the error. A GET is retried after any failure."""

    attempts: int = Field(default=3, ge=1, le=20)
    """Of one request in total, the first included; another backend is preferred."""
    backoff_s: float = Field(default=0.1, ge=0)
    """Before the same backend is asked again; doubles each time, with jitter."""


class BreakerSettings(Part):
    """A backend that keeps failing gets no requests for a while."""

    failures: int = Field(default=5, ge=1)
    """In a row: no connection, no or an invalid answer, a time-out, 500, 502, 503 or 504."""
    cooldown_s: float = Field(default=5.0, gt=0)
    """Then one request is sent; it closes the breaker, or opens it again."""


class HealthSettings(Part):
    """Active checks of the backends."""

    interval_s: float = Field(default=5.0, gt=0)
    timeout_s: float = Field(default=5.0, gt=0)
    """Also of a client's GET /v1/models, which asks the same."""
    path: str = Field(default="/v1/models", pattern="^/")
    """Any status below 400 is healthy. `/health` of vLLM also detects a dead engine."""


class FeatureSettings(Part):
    """Where the hidden state of a question comes from."""

    kind: Literal["vllm", "vllm_pooling", "sglang", "local", "none"] = "none"
    url: str | None = None
    """Of the server that gives hidden states (`vllm_pooling`, `sglang`). With `vllm` each question is asked at the
    backend that will answer it; give the address of another server that evaluates the probe to ask that one instead."""
    model: str | None = None
    """What the server calls the model; the first one that it names when not given."""
    api_key_env: str | None = None
    api_key_file: str | None = None
    deadline_ms: float = Field(default=200.0, gt=0)
    """After it the request continues as Normal."""
    cache_size: int = Field(default=10_000, ge=0)
    """Questions whose probabilities are cached."""
    batch_size: int = Field(default=16, ge=1)
    """Questions in one forward (`local`)."""
    batch_wait_ms: float = Field(default=2.0, ge=0)
    """How long a question waits for others to share its forward (`local`)."""
    threads: int | None = Field(default=None, ge=1)
    """Of a forward on a CPU (`local`); by default one less than this process may use, so that the router has one."""

    @model_validator(mode="after")
    def _url_when_needed(self) -> FeatureSettings:
        started = {"vllm_pooling": "--runner pooling", "sglang": "--return-hidden-states-mode last"}.get(self.kind)
        if started is not None and not (self.url or "").startswith(("http://", "https://")):
            raise UserValueError(f"{self.kind} needs url, the address of a server started with {started}")
        if self.url is not None:
            if not self.url.startswith(("http://", "https://")):
                raise UserValueError("url must be an address such as http://10.0.0.1:8000")
            check_address(self.url, "url ")
        return self

    def api_key(self) -> str | None:
        """The key, or ``None``. Raises a ValueError when it is configured and cannot be read."""
        return read_key("features", self.api_key_env, self.api_key_file)


class LimitSettings(Part):
    """What a client may send, and how slowly."""

    max_body_bytes: int = Field(default=8 * 2**20, ge=1)
    """An image in a data URL counts in base64, which is a third larger than its file."""
    max_header_count: int = Field(default=100, ge=1)
    max_header_bytes: int = Field(default=64 * 2**10, ge=256)
    """Of the request line and all headers."""
    max_json_depth: int = Field(default=100, ge=2, le=200)  # orjson writes up to 254
    max_requests: int = Field(default=4096, ge=1)
    """At the same time, over all backends; the next one gets 503 with Retry-After."""
    header_timeout_s: float = Field(default=20.0, gt=0)
    """From the first byte of a request (or from the connection) to the end of its headers. Also for the rest of a body
    that is not read, from its answer."""
    body_timeout_s: float = Field(default=60.0, gt=0)
    """For the whole body."""
    write_timeout_s: float = Field(default=60.0, gt=0)
    """How long a client may leave its answer unread; it must read at least 64 KiB, or all of it, in that time."""
    keep_alive_s: float = Field(default=75.0, gt=0)
    """An idle connection is closed after it."""
    max_buffered_bytes: int = Field(default=8 * 2**20, ge=0)
    """An answer that is not streamed is buffered up to this size, so that the loss of a backend gives an error in
    OpenAI's shape. When a longer answer breaks off, the client's connection is closed."""


class AuthSettings(Part):
    """Bearer keys of the clients; without keys every client is accepted."""

    keys_env: str | None = None
    """Environment variable with the keys, separated by commas or white space."""
    keys_file: str | None = None
    """File with one key per line; lines that start with # are comments."""
    public_metrics: bool = True
    """Whether /metrics needs no key although there are keys; it holds counts, never a question."""
    public_status: bool = False
    """The same for /status.json."""

    def keys(self) -> tuple[str, ...]:
        """The accepted keys. Raises a ValueError when they are configured and cannot be read, or are empty."""
        return read_keys(self.keys_env, self.keys_file)
