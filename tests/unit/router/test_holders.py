"""Which backend holds a stored answer."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from entropy_rft.router.holders import Holders


def test_an_id_of_any_length_takes_no_memory() -> None:
    backends: list[Any] = [object(), object()]
    holders = Holders(cast("Any", None), cast("Any", SimpleNamespace(backends=backends)))
    holders.remember("resp_1", backends[0])
    holders.remember("x" * 1_000_000, backends[1])
    assert dict(holders._known) == {"resp_1": backends[0]}
