from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

import pytest

from entropy_rft.cli import inspect as verb
from entropy_rft.cli.main import main
from entropy_rft.entropy.lens import COLUMNS
from entropy_rft.entropy.lens import PARTITIONS as RECORDED
from entropy_rft.evaluation.lens import PARTITIONS, Bucket, load_lens, totals
from entropy_rft.evaluation.lens_table import lens_lines, shown

EVIL = '<script>alert("x")</script>\x1b[31m'


def line(step: int, audited: bool = False) -> dict:
    """An update of 100 tokens of which four buckets have some; each partition has the same sums."""
    noise = random.Random(step)
    rows = []
    for tokens in (40.0, 30.0, 20.0, 10.0):
        loss, gain = -noise.random(), noise.random()
        rows.append([tokens, loss, gain, 2.0, loss / 2, gain / 4, *([noise.random() - 0.5] if audited else [])])
    empty = [0.0] * len(rows[0])
    parts = {
        name: {bucket: rows[i] if i < len(rows) else empty for i, bucket in enumerate(buckets)}
        for name, buckets in RECORDED.items()
    }
    columns = [*COLUMNS, *(["measured"] if audited else [])]
    return {"step": step, "columns": columns, **parts, "edges": [0.1 * step * k for k in range(-4, 5)]}


def extreme(change: float, **values: object) -> dict:
    numbers = {"advantage": -1.0, "probability": 0.1, "entropy": 1.0, "discriminant": 0.2, "phase": "thinking"}
    return {"change": change, **numbers, "dropped": change < -1, "before": "a ", "token": "b", "after": " c", **values}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    run = tmp_path / "run"
    run.mkdir()
    lines = [line(10), line(20, audited=True), line(30, audited=True)]
    (run / "lens.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))
    return run


def parsed(*words: object) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    verb.add_parser(parser.add_subparsers())
    return parser.parse_args(["inspect", *map(str, words)])


def test_reader_and_writer_agree_on_the_partitions_and_columns() -> None:
    assert tuple(RECORDED) == PARTITIONS
    assert set(COLUMNS) | {"measured"} == set(Bucket.__dataclass_fields__)


def test_updates_are_added_up_and_audited_ones_apart(directory: Path) -> None:
    lens = load_lens(directory)
    assert [record.step for record in lens.records] == [10, 20, 30]
    assert [record.step for record in lens.audited] == [20, 30]
    raw = [line(10), line(20, audited=True), line(30, audited=True)]
    rows = [each["probability"]["0.1 to 0.2"] for each in raw]
    bucket = totals(lens.records)["probability"]["0.1 to 0.2"]
    assert bucket.tokens == 90
    assert bucket.loss == pytest.approx(sum(row[1] for row in rows))
    assert bucket.predicted == pytest.approx(sum(row[1] / 2 + row[2] * 3 / 4 for row in rows))
    assert bucket.measured is None
    assert totals(lens.audited)["probability"]["0.1 to 0.2"].measured == pytest.approx(sum(r[6] for r in rows[1:]))
    assert [record.step for record in load_lens(directory, 11, 29).records] == [20]


def test_shares_add_up_to_a_hundred_and_changes_to_the_whole(directory: Path) -> None:
    first, *lines = lens_lines(load_lens(directory))
    assert first[:5] == ["all tokens", "100.0", "100.0", "100.0", "50.0"]
    for names in (("positive thinking", "negative thinking"), ("0.0 to 0.1", "0.3 to 0.4"), ("1: to", "4: ")):
        start = next(i for i, each in enumerate(lines) if each[0].strip().startswith(names[0]))
        rows = lines[start : start + 4]
        assert rows[3][0].strip().startswith(names[1])
        for column in (1, 2, 3):
            assert sum(float(row[column]) for row in rows) == pytest.approx(100, abs=0.3)
        for column in (5, 6):
            assert sum(float(row[column]) for row in rows) == pytest.approx(float(first[column]), abs=0.003)


def test_a_line_that_cannot_be_read_is_skipped_with_a_note(directory: Path) -> None:
    with (directory / "lens.jsonl").open("a") as file:
        file.write('{"step": 40}\n' + json.dumps(line(50))[:200])
    lens = load_lens(directory)
    assert [record.step for record in lens.records] == [10, 20, 30]
    assert len(lens.notes) == 2
    assert "not a record" in lens.notes[0]
    assert "half written" in lens.notes[1]


@pytest.mark.parametrize(("updates", "noted"), [((2, 2), True), ((1, 2), False), ((1, 1), False), ((2,), False)])
def test_records_of_second_updates_alone_are_noted(tmp_path: Path, updates: tuple[int, ...], noted: bool) -> None:
    lines = [line(10 * place) | {"update": update} for place, update in enumerate(updates, 1)]
    (tmp_path / "lens.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))
    lens = load_lens(tmp_path)
    assert [record.update for record in lens.records] == list(updates)
    assert bool(lens.notes) is noted
    assert all("number 2 of its generation: record every update" in note for note in lens.notes)


def test_an_update_without_a_valid_token_or_with_nan_breaks_nothing(directory: Path, tmp_path: Path) -> None:
    empty = line(40)
    for partition in PARTITIONS:
        empty[partition] = {bucket: [0.0] * 6 for bucket in empty[partition]}
    spoiled = line(50)
    spoiled["advantage_phase"]["positive/thinking"][1] = None
    for content in (empty, spoiled):
        (directory / "lens.jsonl").write_text(json.dumps(content) + "\n")
        assert main(["inspect", str(directory), "--output", str(tmp_path / "page.html")]) == 0


def test_the_most_extreme_tokens_of_all_updates_come_first(directory: Path) -> None:
    lines = [{"step": step, "tokens": [extreme(sign * step) for sign in (-1, 1)]} for step in (10, 20, 30)]
    (directory / "lens_tokens.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))
    assert [(t["step"], t["change"]) for t in load_lens(directory).extremes(2)] == [
        (30, -30),
        (20, -20),
        (30, 30),
        (20, 20),
    ]
    assert len(load_lens(directory, 20).tokens) == 4


def test_the_verb_prints_a_table_and_writes_what_was_asked_for(
    directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (directory / "run.json").write_text(json.dumps({"name": "a run"}))
    tokens = {"step": 20, "tokens": [extreme(-2.5, token="wait"), extreme(1.5)]}
    (directory / "lens_tokens.jsonl").write_text(json.dumps(tokens) + "\n")
    page, values = tmp_path / "out" / "lens.html", tmp_path / "out" / "lens.json"
    args = parsed(directory, directory, "--json", values, "--output", page)
    assert args.run(args) == 0
    out = capsys.readouterr().out
    assert "3 recorded updates, 10 to 30, 2 of them audited" in " ".join(out.split())
    assert "update 20, thinking, ΔH -2.500" in out
    assert "dropped: a ⟦wait⟧ c" in out
    first, second = json.loads(values.read_text())["runs"]
    assert first["run"] == second["run"] == f"a run ({directory})"
    assert first["buckets"]["discriminant"]["1"]["tokens"] == 120
    assert first["audited_buckets"]["discriminant"]["1"]["measured"] is not None
    assert [token["token"] for token in first["tokens"]] == ["wait", "b"]
    source = page.read_text()
    assert source.count('role="img"') == 5
    assert "<mark>wait</mark>" in source


def test_text_of_a_model_stays_text(directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokens = {"step": 20, "tokens": [extreme(-2.5, before=EVIL, token=EVIL, after=EVIL, phase=EVIL)]}
    (directory / "lens_tokens.jsonl").write_text(json.dumps(tokens) + "\n")
    (directory / "run.json").write_text(json.dumps({"name": "<script>"}))
    page = tmp_path / "lens.html"
    assert main(["inspect", str(directory), "--output", str(page)]) == 0
    assert "\x1b" not in capsys.readouterr().out
    assert "<script" not in page.read_text()
    assert shown("a\nb\x1b[31mé☃") == "a\\nb\\x1b[31mé☃"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "run 'nowhere' is not a directory"),
        (["empty"], "'empty' has no lens.jsonl: train with entropy_lens_steps: 10 in the recipe"),
        (["run", "--from_step", "31"], "'run/lens.jsonl' has no record from update 31 to the end"),
        (["run", "--to_step", "9"], "'run/lens.jsonl' has no record from update 1 to update 9"),
        (["run", "--from_step", "0"], "--from_step must be at least 1, got 0"),
        (["run", "--from_step", "5", "--to_step", "4"], "--to_step must be at least 5, got 4"),
        (["run", "--tokens", "-1"], "--tokens must be at least 0, got -1"),
        (["run", "--json", "run"], "--json 'run' cannot be written: "),
        (["run", "--output", "run"], "--output 'run' cannot be written: "),
    ],
)
def test_a_mistake_is_one_line(
    words: list[str],
    message: str,
    directory: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (directory.parent / "empty").mkdir()
    monkeypatch.chdir(directory.parent)
    assert main(["inspect", *words]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith(f"entropy-rft: error: {message}")
    assert errors.count("\n") == 1
