"""A backend that sends exactly the bytes that a test gives, and leaves the connection open or closes it."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Iterable
from contextlib import suppress

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_MODELS = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"


class RawBackend:
    """A thread for each connection. `answer` may be changed at any time.

    Attributes:
        answer: what every POST gets: bytes, or pieces that may never end.
        closes: the connection is closed after each such answer.
        asked: POSTs so far.
        sent: bytes of answers that were written, to the kernel at least.
        lost: answers whose connection was lost while they were being written.
    """

    def __init__(self, answer: Iterable[bytes] = (), closes: bool = False) -> None:
        self.answer = answer
        self.closes = closes
        self.asked = 0
        self.sent = 0
        self.lost = 0
        self.changed = threading.Condition()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self._connections: set[socket.socket] = set()
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> RawBackend:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in list(self._connections):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._connections.add(connection)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        buffer = b""
        with connection, suppress(OSError):
            while True:
                while (end := buffer.find(b"\r\n\r\n")) < 0:
                    piece = connection.recv(65536)
                    if not piece:
                        return
                    buffer += piece
                length = _LENGTH.search(buffer, 0, end + 2)
                whole = end + 4 + (int(length[1]) if length else 0)
                while len(buffer) < whole:
                    buffer += connection.recv(65536)
                request, buffer = buffer[:whole], buffer[whole:]
                if not request.startswith(b"POST"):
                    connection.sendall(_MODELS)
                    continue
                with self.changed:
                    self.asked += 1
                answer, closes = self.answer, self.closes  # a test may change them once it has the answer
                self._send(connection, answer)
                if closes:
                    return

    def _send(self, connection: socket.socket, answer: Iterable[bytes]) -> None:
        try:
            for piece in (answer,) if isinstance(answer, bytes) else answer:
                connection.sendall(piece)
                self.sent += len(piece)
        except OSError:
            with self.changed:
                self.lost += 1
                self.changed.notify_all()
            raise

    def wait_until_lost(self, count: int) -> None:
        """Wait until so many answers could not be written to their end."""
        with self.changed:
            assert self.changed.wait_for(lambda: self.lost >= count, 30), f"{self.lost} of {count} connections lost"
