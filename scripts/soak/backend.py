"""A backend to be killed: slow enough that requests are under way when it dies.

    python scripts/soak/backend.py --port 8001 --ledger FILE

It answers in OpenAI's shape with the request's own id, and notes in its ledger what it received and what it has sent.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from soak.ledger import BETWEEN_S, PLAIN_S, PREFIX, WORDS, Ledger

_LENGTH = re.compile(rb"\r\ncontent-length:\s*(\d+)", re.IGNORECASE)
_NUMBER = re.compile(rb"\r\nx-request-id:\s*" + PREFIX.encode() + rb"(\d+)", re.IGNORECASE)
_STREAM = re.compile(rb'"stream"\s*:\s*true')
_MODELS = json.dumps({"object": "list", "data": [{"id": "stub", "object": "model", "owned_by": "soak"}]}).encode()


def plain(name: str) -> bytes:
    message = {"role": "assistant", "content": name}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    usage = {"prompt_tokens": 9, "completion_tokens": WORDS, "total_tokens": 9 + WORDS}
    answer = {"id": name, "object": "chat.completion", "created": 0, "model": "stub", "choices": [choice]}
    return json.dumps(answer | {"usage": usage}).encode()


def events(name: str) -> list[bytes]:
    def event(delta: dict[str, Any], finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        chunk = {"id": name, "object": "chat.completion.chunk", "created": 0, "model": "stub", "choices": [choice]}
        return b"data: " + json.dumps(chunk).encode() + b"\n\n"

    words = [event({"content": f"word{number} "}) for number in range(WORDS)]
    return [event({"role": "assistant", "content": ""}), *words, event({}, "stop"), b"data: [DONE]\n\n"]


class Backend:
    """The server of one process."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One request after the other, until the other side leaves."""
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            while not writer.is_closing():
                head = await reader.readuntil(b"\r\n\r\n")
                length = _LENGTH.search(head)
                body = await reader.readexactly(int(length[1])) if length else b""
                if head.startswith(b"GET"):
                    self._send(writer, _MODELS)
                else:
                    await self._answer(head, body, writer)
        writer.close()

    async def _answer(self, head: bytes, body: bytes, writer: asyncio.StreamWriter) -> None:
        found = _NUMBER.search(head)
        assert found, head
        number = int(found[1])
        name = f"{PREFIX}{number}"
        self.ledger.received(number)
        if not _STREAM.search(body):
            await asyncio.sleep(PLAIN_S)
            self._send(writer, plain(name))
            self.ledger.written(number, 1)
            return
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        for count, piece in enumerate(events(name), start=1):
            await asyncio.sleep(BETWEEN_S)
            if writer.is_closing():
                return
            # asyncio's own loop gives a short write to the system at once, so what is noted has left this process.
            writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            self.ledger.written(number, count)
        writer.write(b"0\r\n\r\n")

    @staticmethod
    def _send(writer: asyncio.StreamWriter, body: bytes) -> None:
        head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
        writer.write(head + body)


async def serve(port: int, ledger: Ledger) -> None:
    server = await asyncio.start_server(Backend(ledger).connected, "127.0.0.1", port, backlog=1024)
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--ledger", type=Path, required=True)
    options = parser.parse_args()
    asyncio.run(serve(options.port, Ledger(options.ledger)))


if __name__ == "__main__":
    main()
