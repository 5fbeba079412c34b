"""A closed-loop HTTP load generator: N connections, each sends its next request when it has the answer to the last.

    python scripts/load_generator.py --url http://127.0.0.1:8080 --concurrency 64 --requests 5000

It parses only the end of an answer, so that it uses little time of the machine that it measures: about 10 µs a request.
The last line printed is the measurement as JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

_LENGTH = re.compile(rb"\r\ncontent-length:\s*(\d+)", re.IGNORECASE)
_MAX_ERRORS = 20


@dataclass
class Measurement:
    """Times in seconds, one per request that got status 200 and a whole answer."""

    totals: list[float] = field(default_factory=list)
    first_bytes: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def summary(self) -> dict[str, Any]:
        totals, first = sorted(self.totals), sorted(self.first_bytes)
        return {
            "requests": len(totals),
            "errors": len(self.errors),
            "first_error": self.errors[0] if self.errors else None,
            "seconds": round(self.seconds, 3),
            "requests_per_second": round(len(totals) / self.seconds, 1) if self.seconds else 0.0,
            **{f"p{p}_ms": percentile(totals, p) for p in (50, 90, 99)},
            **{f"first_byte_p{p}_ms": percentile(first, p) for p in (50, 99)},
        }


def percentile(ordered: list[float], percent: float) -> float | None:
    """Milliseconds, the nearest rank."""
    if not ordered:
        return None
    return round(1e3 * ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))], 4)


class Answers(asyncio.Protocol):
    """Reads one answer at a time; `complete` gets each when it is whole."""

    buffer = b""
    length = 0  # of the whole answer; 0 while unknown, -1 for chunked

    def expect(self) -> None:
        """A request is about to be sent."""
        self.buffer, self.length = b"", 0

    def data_received(self, data: bytes) -> None:
        self.buffer = buffer = self.buffer + data if self.buffer else data
        if not self.length:
            end = buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            length = _LENGTH.search(buffer, 0, end)
            self.length = end + 4 + int(length[1]) if length else -1
        if len(buffer) >= self.length > 0 or (self.length == -1 and buffer.endswith(b"0\r\n\r\n")):
            self.complete(buffer)

    def complete(self, answer: bytes) -> None:
        raise NotImplementedError


class Connection(Answers):
    """One connection of the load; ends when `bodies` does."""

    def __init__(self, head: bytes, bodies: Iterator[bytes], measurement: Measurement, stream: bool) -> None:
        self.head, self.bodies, self.measurement, self.stream = head, bodies, measurement, stream
        self.finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.waiting = False

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.send()

    def connection_lost(self, exception: Exception | None) -> None:
        if self.waiting:
            self.measurement.errors.append(f"connection lost: {exception}")
        if not self.finished.done():
            self.finished.set_result(None)

    def send(self) -> None:
        body = next(self.bodies, None)
        if body is None or len(self.measurement.errors) >= _MAX_ERRORS:
            self.transport.close()
            return
        self.expect()
        self.first = 0.0
        self.waiting = True
        self.start = time.perf_counter()
        self.transport.write(b"%bcontent-length: %d\r\n\r\n%b" % (self.head, len(body), body))

    def data_received(self, data: bytes) -> None:
        if not self.first:
            self.first = time.perf_counter()
        super().data_received(data)

    def complete(self, answer: bytes) -> None:
        now = time.perf_counter()
        self.waiting = False
        whole = b"[DONE]" in answer[-64:] if self.stream else answer.rstrip(b"\r\n0").endswith(b"}")
        if answer.startswith(b"HTTP/1.1 200") and whole:
            self.measurement.totals.append(now - self.start)
            self.measurement.first_bytes.append(self.first - self.start)
        else:
            self.measurement.errors.append(answer[:300].decode("latin-1"))
        self.send()


async def load(
    url: str, bodies: Iterator[bytes], *, concurrency: int, stream: bool = False, headers: dict[str, str] | None = None
) -> Measurement:
    """Send every one of `bodies` to `url`, `concurrency` at a time."""
    parts = urlsplit(url)
    assert parts.hostname
    lines = [f"POST {parts.path} HTTP/1.1", f"host: {parts.netloc}", "content-type: application/json"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    head = "\r\n".join(lines).encode() + b"\r\n"
    measurement = Measurement()
    loop = asyncio.get_running_loop()
    start = time.perf_counter()
    connections = [
        (
            await loop.create_connection(
                lambda: Connection(head, bodies, measurement, stream), parts.hostname, parts.port
            )
        )[1]
        for _ in range(concurrency)
    ]
    await asyncio.gather(*(connection.finished for connection in connections))
    measurement.seconds = time.perf_counter() - start
    return measurement


def questions(
    count: int,
    *,
    model: str = "stub",
    stream: bool = False,
    different: int = 64,
    first: int = 0,
    extra: dict[str, Any] | None = None,
) -> Iterator[bytes]:
    """`count` chat requests that take turns over `different` questions, numbered from `first`; `extra`: more fields."""
    for number in range(count):
        question = first + number % different
        body: dict[str, Any] = {
            "model": model,
            "messages": [{"role": "user", "content": f"What is {question} + {question % 97}?"}],
            **(extra or {}),
        }
        if stream:
            body["stream"] = True
        yield json.dumps(body).encode()


def run(main: Callable[[], Any]) -> Any:
    """``asyncio.run(main())``, on uvloop where there is one."""
    with suppress(ImportError):
        import uvloop

        return uvloop.run(main())
    return asyncio.run(main())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", required=True)
    parser.add_argument("--path", default="/v1/chat/completions")
    parser.add_argument("--model", default="stub")
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--requests", type=int, default=5000)
    parser.add_argument("--different", type=int, default=64, help="questions that the requests take turns over")
    parser.add_argument("--first", type=int, default=0, help="number of the first question")
    parser.add_argument("--stream", action="store_true")
    options = parser.parse_args()
    bodies = questions(
        options.requests,
        model=options.model,
        stream=options.stream,
        different=options.different,
        first=options.first,
    )
    url = options.url.rstrip("/") + options.path
    measurement = run(lambda: load(url, bodies, concurrency=options.concurrency, stream=options.stream))
    print(json.dumps(measurement.summary()))


if __name__ == "__main__":
    main()
