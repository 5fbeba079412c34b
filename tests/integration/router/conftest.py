from __future__ import annotations

from collections.abc import Iterator

import pytest
from stub import Stub


@pytest.fixture
def stub() -> Iterator[Stub]:
    with Stub() as stub:
        yield stub
