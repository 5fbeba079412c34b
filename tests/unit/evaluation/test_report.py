from __future__ import annotations

import argparse
import builtins
import json
import re
from html.parser import HTMLParser

import pytest

from entropy_rft.cli import report as verb
from entropy_rft.evaluation import load_run, write_report
from entropy_rft.evaluation.plots import CURVES, curve_svg, smoothed, thinned
from entropy_rft.reporting.figures import PALETTE

EVIL = '<script>alert("x")</script>$^{&'
VOID = {"meta", "br", "hr", "img", "link", "input"}


class Checker(HTMLParser):
    """Collects the tags and the text, and insists on balanced tags."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.attributes, self.text = [], set(), [], []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def checked(path) -> tuple[Checker, str]:
    checker = Checker()
    checker.feed(path.read_text())
    assert checker.open == []
    return checker, " ".join(checker.text)


@pytest.fixture
def page(tmp_path):
    return tmp_path / "out" / "report.html"


def test_a_comparison_has_every_part(make_run, page):
    runs = [
        load_run(make_run("grpo", ours=False, recipe={"entropy_clip": "none"})),
        load_run(make_run("clip_b", decay=0.005, recipe={"extra": 1})),
    ]
    write_report(runs, page, title="Two runs")
    _, text = checked(page)
    for expected in (
        "Two runs",
        "Entropy (nats per token)",
        "Reward",
        "Thinking length",
        "Dropped by entropy clipping",
    ):
        assert expected in text
    for expected in (
        "Predicted entropy change",
        "40 × 8",
        "62.5",
        "55.0–70.0",
        "pass@8 (%)",
        "accuracy by difficulty",
        "pass@k by difficulty",
    ):
        assert expected in text
    assert "entropy-rft train --config recipes/tiny/clip_b.yaml" in text
    assert "Recorded by no run: pear penalty" in text
    differences = page.read_text().split("<h2>Recipes</h2>")[1].split("<details>")[0]
    assert re.findall(r'<th scope="row">(.*?)</th>', differences) == ["entropy_clip", "extra"]
    assert all(colour.lower() in page.read_text().lower() for colour in PALETTE[:2])


def test_the_page_stands_alone(make_run, page):
    write_report([load_run(make_run("clip_b"))], page)
    checker, _ = checked(page)
    assert not checker.tags & {"script", "link", "img", "iframe", "object", "embed"}
    for name, value in checker.attributes:
        if name in ("src", "href", "xlink:href", "srcset"):
            assert value.startswith("#"), (name, value)
    source = page.read_text()
    assert not re.findall(r"url\((?!#)", source)
    assert "@import" not in source
    drawings = re.findall(r"<svg [^>]*role=[^>]*>", source)
    assert len(drawings) > 6
    assert all("aria-label=" in drawing and 'width="' not in drawing for drawing in drawings)


def test_text_from_a_run_cannot_become_markup(make_run, make_evaluation, page):
    directory = make_run(EVIL, recipe={EVIL: EVIL})
    description = json.loads((directory / "run.json").read_text())
    description |= {"command": [EVIL], "versions": {EVIL: EVIL}, "device": EVIL, "created": EVIL, "seed": EVIL}
    (directory / "run.json").write_text(json.dumps(description))
    evaluation = make_evaluation(task=EVIL, model=EVIL, settings={EVIL: EVIL})
    evaluation.by_difficulty = {EVIL: next(iter(evaluation.by_difficulty.values()))}
    evaluation.save(directory / "evaluation.json")
    (directory / "evaluation-x.json").write_text(json.dumps({"schema": EVIL}))
    (directory / "metrics.jsonl").write_text('{"step": 1, "entropy": NaN, "reward": 1}\n<script>')
    run = load_run(directory)
    run.notes.append(EVIL)
    write_report([run, run], page, title=EVIL)
    checker, text = checked(page)
    assert "script" not in checker.tags
    assert EVIL in text
    assert not [name for name, _ in checker.attributes if name.startswith("on")]


def test_what_the_doctor_found_is_in_the_page_and_in_the_summary(make_run, page, capsys):
    directory, healthy = make_run("clip_b"), make_run("grpo")
    (directory / "findings.jsonl").write_text(json.dumps({"step": 12, "finding": "no_spread", "message": EVIL}) + "\n")
    args = parsed(directory, healthy, "--output", page)
    assert args.run(args) == 0
    assert f"doctor: clip_b: no_spread, update 12: {EVIL}" in capsys.readouterr().out.replace("\n", "")
    checker, text = checked(page)
    assert "What the doctor found" in text
    assert EVIL in text
    assert "script" not in checker.tags
    write_report([load_run(healthy)], page)
    assert "doctor" not in checked(page)[1]


def test_what_is_missing_breaks_nothing(make_run, page):
    bare = make_run("bare", evaluation=False, ours=False)
    (bare / "metrics.jsonl").write_text("")
    (bare / "run.json").write_text("{}")
    (bare / "recipe.yaml").write_text("")
    write_report([load_run(bare)], page)
    assert "No run has an evaluation.json" in checked(page)[1]
    write_report([load_run(bare), load_run(make_run("clip_b"))], page)
    checked(page)
    with pytest.raises(ValueError, match="at least one run"):
        write_report([], page)


def test_an_evaluation_without_a_score(make_run, make_evaluation, page):
    directory = make_run("unscored")
    empty = {"avg_at_k": None, "avg_interval": None, "pass_at_k": {}, "entropy_answer": None, "by_difficulty": {}}
    make_evaluation(**empty).save(directory / "evaluation.json")
    write_report([load_run(directory)], page)
    checked(page)


def test_runs_of_one_name_are_told_apart(make_run, page, tmp_path):
    first, second = load_run(make_run("a")), load_run(make_run("b"))
    second.name = "a"
    write_report([first, second], page)
    assert f"a ({tmp_path / 'b'})" in checked(page)[1]


def test_the_report_is_reproducible(make_run, tmp_path):
    run = load_run(make_run("clip_b"))
    write_report([run], tmp_path / "1.html")
    write_report([run], tmp_path / "2.html")
    assert (tmp_path / "1.html").read_bytes() == (tmp_path / "2.html").read_bytes()


def test_a_long_run_makes_a_page_of_bounded_size(make_run):
    short, long = load_run(make_run("short", steps=800)), load_run(make_run("long", steps=20_000))
    sizes = [len(curve_svg([run], CURVES[0]) or "") for run in (short, long)]
    assert sizes[1] < 1.5 * sizes[0]


def test_smoothing_keeps_lines_and_thinning_keeps_spikes():
    assert smoothed([]) == []
    assert smoothed([1.0, 5.0]) == [1.0, 5.0]
    line = [float(i) for i in range(400)]
    assert smoothed(line)[100:300] == pytest.approx(line[100:300])
    values = [0.0] * 10_000
    values[4321] = 9.0
    steps, kept = thinned(range(10_000), values)
    assert len(kept) <= 800
    assert (4321, 9.0) in zip(steps, kept, strict=True)
    assert steps == sorted(set(steps))


def test_without_matplotlib_one_line_says_what_to_install(make_run, page, monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ModuleNotFoundError(f"No module named {name!r}")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r'^a report needs matplotlib: pip install "entropy_rft\[report\]"$'):
        write_report([load_run(make_run("clip_b"))], page)


def parsed(*words):
    parser = argparse.ArgumentParser()
    verb.add_parser(parser.add_subparsers())
    return parser.parse_args(["report", *map(str, words)])


def test_the_verb_prints_a_summary_and_writes_the_page(make_run, page, capsys):
    directory = make_run("clip_b")
    (directory / "metrics.jsonl").write_text('{"step": 1, "reward": 0.5}\n{"st')
    args = parsed(directory, make_run("grpo"), "--output", page)
    assert args.run(args) == 0
    out = capsys.readouterr().out
    assert "clip_b" in out
    assert "40 × 8" in out
    assert "half written" in out
    assert page.is_file()


def test_the_verb_names_what_is_wrong(make_run, tmp_path):
    args = parsed(tmp_path)
    with pytest.raises(ValueError, match="not a run directory"):
        args.run(args)
    args = parsed(make_run("clip_b"), "--output", tmp_path)
    with pytest.raises(ValueError, match="--output"):
        args.run(args)
