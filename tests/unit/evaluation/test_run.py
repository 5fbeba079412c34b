from __future__ import annotations

import json

import pytest

from entropy_rft.evaluation import load_run


def test_a_run_is_read(make_run, make_evaluation):
    directory = make_run("clip_b", steps=40)
    make_evaluation(task="gsm8k").save(directory / "evaluation-gsm8k-test.json")
    run = load_run(directory)
    assert (run.name, run.seed, run.device) == ("clip_b", 1, "cpu")
    assert run.recipe["entropy_clip"] == "clip_b"
    assert run.versions["trl"] == "1.16.0"
    assert [row["step"] for row in run.metrics] == list(range(1, 41))
    assert list(run.evaluations) == ["evaluation.json", "evaluation-gsm8k-test.json"]
    assert run.evaluation == make_evaluation()
    assert run.series("eval_reward") == ([20, 40], [0.6, 0.6])
    assert len(run.series("reward")[0]) == 40  # the evaluation's line leaves the training metrics of its step alone
    assert run.series("no such metric") == ([], [])
    assert run.notes == []


def write_metrics(directory, lines):
    (directory / "metrics.jsonl").write_text("\n".join(lines))


def test_after_a_resume_the_last_line_of_a_step_wins(make_run):
    directory = make_run("resumed")
    entries = [(1, 0.1), (2, 0.2), (3, 0.3), (4, 0.4), (2, 0.25), (3, 0.35)]
    write_metrics(directory, [json.dumps({"step": step, "reward": value}) for step, value in entries])
    assert load_run(directory).series("reward") == ([1, 2, 3], [0.1, 0.25, 0.35])  # step 4 was of the killed part


def test_a_half_written_line_is_a_note(make_run):
    directory = make_run("killed")
    write_metrics(directory, ['{"step": 1, "reward": 0.5}', "[]", '{"reward": 1}', '{"step": 2, "rew'])
    run = load_run(directory)
    assert run.series("reward") == ([1], [0.5])
    assert run.notes == ["metrics.jsonl: line 2, 3, 4 is not a metrics entry (half written?) and is skipped"]


def test_nan_is_tolerated_and_noted(make_run):
    directory = make_run("nan")
    write_metrics(directory, ['{"step": 1, "loss": NaN, "note": "text"}', '{"step": 2, "loss": 0.5, "note": null}'])
    run = load_run(directory)
    assert run.series("loss") == ([2], [0.5])
    assert run.series("note") == ([], [])
    assert run.notes == ["metrics.jsonl: loss is not finite at 1 steps"]


def test_a_broken_evaluation_is_a_note(make_run):
    directory = make_run("broken")
    (directory / "evaluation.json").write_text("{}")
    run = load_run(directory)
    assert run.evaluation is None
    assert "evaluation.json is left out" in run.notes[0]


def test_a_run_that_has_only_just_begun(make_run):
    directory = make_run("young", evaluation=False)
    (directory / "metrics.jsonl").write_text("")
    (directory / "run.json").write_text("{}")
    (directory / "recipe.yaml").write_text("")
    run = load_run(directory)
    assert (run.name, run.metrics, run.recipe, run.evaluation) == ("young", [], {}, None)


def test_what_is_no_run_says_what_is_missing(tmp_path, make_run):
    with pytest.raises(ValueError, match="nowhere' is not a directory"):
        load_run(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"run\.json, recipe\.yaml, metrics\.jsonl"):
        load_run(tmp_path)
    directory = make_run("half")
    (directory / "recipe.yaml").unlink()
    with pytest.raises(ValueError, match=r"has no recipe\.yaml$"):
        load_run(directory)


@pytest.mark.parametrize(
    ("file", "text"), [("run.json", "{"), ("run.json", "[]"), ("recipe.yaml", "a: ["), ("recipe.yaml", "- a")]
)
def test_malformed_files_are_named(make_run, file, text):
    directory = make_run("malformed")
    (directory / file).write_text(text)
    with pytest.raises(ValueError, match=file) as caught:
        load_run(directory)
    assert "\n" not in str(caught.value)


def test_findings_are_read_and_half_a_line_is_a_note(make_run):
    directory = make_run("found")
    assert load_run(directory).findings == []
    entry = json.dumps({"step": 12, "finding": "no_spread", "message": "raise num_generations"})
    (directory / "findings.jsonl").write_text(entry + '\n{"step": 13, "find')
    run = load_run(directory)
    assert list(map(str, run.findings)) == ["no_spread, update 12: raise num_generations"]
    assert run.notes == ["findings.jsonl: a line is not a finding (half written?) and is skipped"]
