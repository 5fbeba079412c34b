"""The state of one backend: whether it is up, how busy it is, and whether its breaker lets requests through."""

from __future__ import annotations

from entropy_rft.router.settings_parts import BackendSettings, BreakerSettings

CLOSED, HALF_OPEN, OPEN = 0, 1, 2
_LONGEST_COOLING_S = 300.0  # upper limit for a Retry-After: a wrong value must not block a backend forever


class Backend:
    """State of one backend, used only by the event loop's thread.

    Attributes:
        inside: it is the server that the router runs in, so that all its headers are for the client.
        outstanding: requests that it has not answered completely.
        up: what the last health check found; ``None`` before the first.
        limits_thinking: for each path, whether it knows a limit on the thinking there; absent: unknown.
        max_model_len: context length that its /v1/models reports, in tokens.
        requests, failures: totals.
    """

    inside = False

    def __init__(self, settings: BackendSettings, breaker: BreakerSettings) -> None:
        self.settings = settings
        self.name = settings.name
        self.url = settings.url
        key = settings.api_key()
        self.headers = {"authorization": f"Bearer {key}"} if key else {}
        self.limit = settings.max_outstanding
        self.weight = settings.weight
        self.outstanding = 0
        self.up: bool | None = None
        self.limits_thinking: dict[str, bool] = {}
        self.max_model_len: int | None = None
        self.requests = 0
        self.failures = 0
        self._gone = False  # its latest failure: there was no connection, or it was lost
        self._allowed = breaker.failures
        self._cooldown_s = breaker.cooldown_s
        self._in_a_row = 0
        self._open_until: float | None = None
        self._trial = 0  # the number of the trial in progress; 0: none
        self._trials = 0
        self._cooling_until = 0.0

    def breaker(self, now: float) -> int:
        """`CLOSED`, `HALF_OPEN` (one request may try) or `OPEN` at the loop's time `now`."""
        if self._open_until is None:
            return CLOSED
        return OPEN if now < self._open_until else HALF_OPEN

    def cooling_s(self, now: float) -> float:
        """Seconds left of the pause that it asked for (429 with Retry-After)."""
        return max(0.0, self._cooling_until - now)

    def blocked_s(self, now: float) -> float:
        """Seconds until a request may go to it; 0: now. A full backend or a trial in progress gives one second."""
        waits = [self.cooling_s(now)]
        if self._open_until is not None:
            waits.append(max(self._open_until - now, 1.0 if self._trial else 0.0))
        if self.outstanding >= self.limit:
            waits.append(1.0)
        return max(waits)

    def may_be_back(self, now: float) -> bool:
        """Whether only its breaker blocks it: after a refused or lost connection, or while one request tries it.

        That one may take as long as a generation takes.
        """
        if self._open_until is None or self.cooling_s(now) > 0 or self.outstanding >= self.limit:
            return False
        return self._gone or self._open_until <= now

    def begin(self, now: float) -> int:
        """Count a request to it; returns the number of the breaker's trial, else 0. `ended` must follow."""
        self.outstanding += 1
        self.requests += 1
        if self._open_until is not None and now >= self._open_until:
            self._trials += 1
            self._trial = self._trials
            return self._trial
        return 0

    def ended(self, trial: int) -> None:
        """The request has ended, with or without an answer."""
        self.outstanding -= 1
        if trial == self._trial:  # an older trial may be a long answer that ends now
            self._trial = 0

    def succeeded(self) -> None:
        """It answered; an error caused by the client counts too."""
        self._in_a_row = 0
        self._open_until = None
        self._trial = 0
        self._gone = False

    def failed(self, now: float, gone: bool = False) -> None:
        """It gave no answer, or a server error; `gone`: it refused the connection, or ended it too early."""
        self.failures += 1
        self._gone = gone
        self._in_a_row += 1
        if self._in_a_row >= self._allowed:
            self._open_until = now + self._cooldown_s

    def cool(self, now: float, seconds: float) -> None:
        """It asked for a pause."""
        self._cooling_until = max(self._cooling_until, now + min(seconds, _LONGEST_COOLING_S))

    def checked(self, healthy: bool, now: float) -> None:
        """Save a health check's result. A healthy backend may be tried at once although its breaker is open."""
        if healthy and self.up is False:
            self.limits_thinking.clear()  # it may have been started again in another way
        self.up = healthy
        if healthy and self._open_until is not None:
            self._open_until = min(self._open_until, now)
