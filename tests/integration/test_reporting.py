"""`report_to`: wandb, TensorBoard and trackio each hold what metrics.jsonl holds, and none of them needs a network."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import sqlite3
import struct
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from entropy_rft.assets import DEFAULT_TASK

pytestmark = pytest.mark.integration

TRACKERS = ("wandb", "tensorboard", "trackio")
METRICS = (
    "entropy_clip/sigma",
    "entropy_clip/dropped",
    "entropy/thinking",
    "entropy/predicted_change",
    "pear/penalty",
    "completions/thinking_length",
)
STEPS = 2
COMPLETIONS = 8


@dataclass
class Reported:
    """A finished run, the folder it ran in, and who connected to the proxy that it was told to use."""

    cwd: Path
    logged: list[dict[str, Any]]
    connections: int
    left_running: list[str]


@pytest.fixture(scope="module")
def reported(random_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Reported:
    """One run that reports to all trackers that are installed."""
    cwd = tmp_path_factory.mktemp("reported")
    # The random model is never right; a second reward gives it advantages, and so a predicted change.
    (cwd / "ours.py").write_text(
        "def length(completion_ids, **kwargs):\n    return [float(sum(ids) % 7) for ids in completion_ids]\n"
    )
    fields = {
        "model_name_or_path": str(random_model_dir),
        "task": DEFAULT_TASK,
        "task_limit": 16,
        "rewards": ["pear", "ours:length"],
        "entropy_clip": "clip_b",
        "entropy_clip_mu_low": 0.2,
        "output_dir": "run",
        "max_steps": STEPS,
        "per_device_train_batch_size": COMPLETIONS,
        "num_generations": 4,
        "max_completion_length": 8,
        "bf16": False,
        "gradient_checkpointing": False,
        "use_cpu": True,
        "logging_steps": 1,
        "save_strategy": "no",
        "log_completions": True,
        "report_to": [name for name in TRACKERS if importlib.util.find_spec(name)],
    }
    (cwd / "recipe.yaml").write_text(yaml.safe_dump(fields))
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        url = "http://{}:{}".format(*proxy.getsockname())
        environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
        environment |= dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), url)
        environment |= {"NO_PROXY": "localhost,127.0.0.1", "WANDB_MODE": "offline", "WANDB_DIR": str(cwd)}
        environment |= {"WANDB_SILENT": "true", "TRACKIO_DIR": str(cwd / "trackio"), "HF_HUB_OFFLINE": "0"}
        process = subprocess.Popen(
            [sys.executable, "-m", "entropy_rft", "train", "--config", "recipe.yaml"],
            cwd=cwd,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        output, _ = process.communicate(timeout=400)
        assert process.returncode == 0, output[-4000:]
        left = processes_of_session(process.pid)
        proxy.setblocking(False)
        connections = 0
        while True:
            try:
                proxy.accept()[0].close()
            except BlockingIOError:
                break
            connections += 1
    logged = [json.loads(line) for line in (cwd / "run" / "metrics.jsonl").read_text().splitlines()]
    return Reported(cwd, logged, connections, left)


def processes_of_session(leader: int) -> list[str]:
    """What the run has left running, once what is about to end has had the time for it."""
    import psutil

    def alive() -> list[str]:
        found = []
        for process in psutil.process_iter(["cmdline", "status"]):
            try:
                if os.getsid(process.pid) == leader and process.info["status"] != psutil.STATUS_ZOMBIE:
                    found.append(" ".join(process.info["cmdline"] or []))
            except (ProcessLookupError, psutil.Error):
                continue
        return found

    deadline = time.monotonic() + 30
    while (left := alive()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return left


@pytest.mark.parametrize("tracker", TRACKERS)
def test_our_metrics_arrive_with_the_values_of_metrics_jsonl(tracker: str, reported: Reported) -> None:
    pytest.importorskip(tracker)
    assert [entry["step"] for entry in reported.logged] == [1, 2]
    assert all(entry["entropy/predicted_change"] != 0 for entry in reported.logged)
    assert any(entry["entropy_clip/dropped"] > 0 for entry in reported.logged)
    arrived = READERS[tracker](reported.cwd)
    for entry in reported.logged:
        (row,) = [row for row in arrived if row.get("train/global_step") == entry["step"] and "train/loss" in row]
        for name in METRICS:
            # TensorBoard's files hold float32.
            assert row[f"train/{name}"] == pytest.approx(entry[name], rel=1e-6), name


def test_nothing_is_sent_and_nothing_is_left_running(reported: Reported) -> None:
    assert reported.connections == 0
    assert reported.left_running == []


def test_completions_are_files_of_the_run_whatever_the_tracker(reported: Reported) -> None:
    """TRL writes them for every tracker; TensorBoard, which it gives no table, has them only here."""
    import pandas

    for step in range(1, STEPS + 1):
        table = pandas.read_parquet(reported.cwd / "run" / "completions" / f"completions_{step:05d}.parquet")
        check_completions(table.columns, len(table), table["length"].tolist())


@pytest.mark.parametrize("tracker", ["wandb", "trackio"])
def test_the_completions_table_arrives(tracker: str, reported: Reported) -> None:
    pytest.importorskip(tracker)
    tables = TABLES[tracker](reported.cwd)
    assert {rows[0]["step"] for rows in tables} == set(range(1, STEPS + 1))
    for rows in tables:
        check_completions(rows[0].keys(), len(rows), [row["length"] for row in rows])


def check_completions(columns: Any, count: int, rewards: list[float]) -> None:
    assert {"step", "prompt", "completion", "pear_reward", "length", "advantage"} <= set(columns)
    assert count == COMPLETIONS
    assert set(rewards) <= set(map(float, range(7)))


def read_wandb(cwd: Path) -> list[dict]:
    """The history of an offline run: protobuf records in LevelDB's log framing, after a header of 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    (file,) = cwd.glob("wandb/offline-run-*/run-*.wandb")
    data, block, position = file.read_bytes(), 32768, 7
    records, parts = [], b""
    while position + 7 <= len(data):
        left = block - position % block
        if left < 7:
            position += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        if kind == 0:
            break
        parts += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a full record, or the last of its parts
            records.append(parts)
            parts = b""
    rows = []
    for raw in records:
        record = wandb_internal_pb2.Record()
        record.ParseFromString(raw)
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            rows.append({item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items})
    return rows


def wandb_tables(cwd: Path) -> list[list[dict]]:
    """The tables that the history refers to."""
    (root,) = cwd.glob("wandb/offline-run-*/files")
    names = [row["completions/path"] for row in read_wandb(cwd) if "completions/path" in row]
    assert names
    tables = [json.loads((root / name).read_text()) for name in names]
    return [[dict(zip(table["columns"], row, strict=True)) for row in table["data"]] for table in tables]


def read_tensorboard(cwd: Path) -> list[dict]:
    """The scalars of each step as one row."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (file,) = (cwd / "run").glob("runs/*/events.out.tfevents.*")  # within the run directory, not beside it
    events = EventAccumulator(str(file), size_guidance={"scalars": 0})
    events.Reload()
    rows: dict[int, dict] = {}
    for tag in events.Tags()["scalars"]:
        for event in events.Scalars(tag):
            rows.setdefault(event.step, {"train/global_step": event.step})[tag] = event.value
    return list(rows.values())


def read_trackio(cwd: Path) -> list[dict]:
    """The rows of its SQLite file."""
    (file,) = (cwd / "trackio").glob("*.db")
    connection = sqlite3.connect(file)
    try:
        return [json.loads(metrics) for (metrics,) in connection.execute("SELECT metrics FROM metrics ORDER BY id")]
    finally:
        connection.close()


def trackio_tables(cwd: Path) -> list[list[dict]]:
    return [row["completions"]["_value"] for row in read_trackio(cwd) if "completions" in row]


READERS = {"wandb": read_wandb, "tensorboard": read_tensorboard, "trackio": read_trackio}
TABLES = {"wandb": wandb_tables, "trackio": trackio_tables}
