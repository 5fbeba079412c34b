"""What the benchmarks of one engine conclude from their rounds."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture
def one_engine(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[2] / "scripts"))
    import bench_one_engine

    return bench_one_engine


@pytest.fixture
def probe_cost(one_engine: ModuleType) -> ModuleType:
    import bench_probe_cost

    return bench_probe_cost


def test_ratios_are_of_the_same_round(one_engine: ModuleType) -> None:
    factors = dict(zip(one_engine.DEPLOYMENTS, (1.0, 1.1, 1.2, 1.0, 2.0, 3.0), strict=True))
    rounds = [
        {"tokens": 512, "seconds": {name: factor * plain for name, factor in factors.items()}} for plain in (1.0, 5.0)
    ]
    older = dict(factors)
    del older[one_engine.UNPROBED]
    rounds.append({"tokens": 2048, "seconds": older})  # before it was measured
    memory = {"plain": 100.0, "router": 120.0, "middleware": 101.0, "two engines": 200.0, "local": 130.0}
    result = {"rounds": rounds, "memory_mb": memory}
    one_engine.summarise(result)
    rows = {(row["tokens"], row["deployment"]): row for row in result["summary"]}
    assert rows[512, "router"]["ratio to plain"] == pytest.approx([1.1] * 3)
    assert rows[512, "router"]["seconds"][0] == pytest.approx(3.3)
    assert rows[512, "middleware"][f"ratio to {one_engine.UNPROBED}"] == pytest.approx([1.2] * 3)
    assert (2048, one_engine.UNPROBED) not in rows
    assert f"ratio to {one_engine.UNPROBED}" not in rows[2048, "middleware"]
    found = [(goal["found"], goal["met"]) for goal in result["goals"]]
    assert found == [(1.1, True), (1.2, False), (0.55, True), (0.6, True), (0.6, False), (0.505, True)]
    one_engine.show(result)


def test_what_a_probe_costs(probe_cost: ModuleType) -> None:
    speeds = {"without 1": 100.0, "with 1": 98.0, "with 2": 196.0, "without 2": 200.0}
    rounds = [{"tokens_per_second": speeds, "cpu_us": dict.fromkeys(speeds, 7.0)}] * 3
    memory = {"without 1": 1000.0, "with 1": 1004.0, "with 2": 1006.0, "without 2": 1002.0}
    found = probe_cost.summary(rounds, memory, 0.5)
    assert found["summary"]["throughput_with_to_without"] == [0.98, 0.98, 0.98]
    assert found["summary"]["throughput_of_two_starts_without"] == [2.0, 2.0, 2.0]
    assert found["summary"]["cpu_with_to_without"] == [1.0, 1.0, 1.0]
    assert found["summary"]["memory_added_mb"] == 4.0
    assert found["summary"]["memory_of_two_starts_mb"] == 2.0
    assert [goal["met"] for goal in found["goals"]] == [False, True]
    probe_cost.show(found)
