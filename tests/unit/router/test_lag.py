from __future__ import annotations

import asyncio
import time

import pytest

from entropy_rft.router.lag import Lag


def test_a_late_loop_is_noticed_and_forgotten() -> None:
    async def main() -> None:
        lag = Lag(tick_s=0.002)
        lag.start()
        await asyncio.sleep(0.01)
        time.sleep(0.1)
        await asyncio.sleep(0)  # the timer's turn
        await asyncio.sleep(0)
        assert lag.seconds == pytest.approx(0.1, abs=0.05)
        late = lag.seconds
        while lag.seconds > late / 4:
            await asyncio.sleep(0.002)
        lag.close()
        last = lag.seconds
        time.sleep(0.05)
        await asyncio.sleep(0.01)
        assert lag.seconds == last

    asyncio.run(main())
