"""From traces to a measured probe on the command line, with the embedded model: killed, resumed, and with mistakes."""

from __future__ import annotations

import contextlib
import io
import json
import os
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from gsm8k import DATA
from warm import WarmCommand

from entropy_rft.assets import DEFAULT_MODEL, DEFAULT_TASK

pytestmark = pytest.mark.integration

COLLECT = ("--model", DEFAULT_MODEL, "--task", DEFAULT_TASK, "--max_tokens", "96", "--device", "cpu")


def probe(*words: object, cwd: Path, expected: int = 0) -> tuple[str, str]:
    """Run a part of the verb in this process, since each new one imports torch; what it wrote to stdout and stderr."""
    from entropy_rft.cli.main import main

    before, out, err = Path.cwd(), io.StringIO(), io.StringIO()
    os.chdir(cwd)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            assert main(["probe", *map(str, words)]) == expected, err.getvalue()
    finally:
        os.chdir(before)
    return out.getvalue(), err.getvalue()


def trace_rows(directory: Path) -> list[dict]:
    from entropy_rft.difficulty.store import read_rows

    return read_rows(directory)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Traces of 60 training questions and, in two shards, of 12 test questions; and a probe of the former."""
    directory = tmp_path_factory.mktemp("probe")
    train = ("collect", *COLLECT, "--limit", 60, "--samples", 4, "--chunk_size", 6, "--output_dir", "train")
    running = WarmCommand(["probe", *map(str, train)], directory, joined=True)
    patience = time.monotonic() + 240
    while len(list(directory.glob("train/data/chunk-*.parquet"))) < 2:
        assert running.poll() is None, running.output()
        assert time.monotonic() < patience
        time.sleep(0.02)
    running.kill()
    running.wait(60)
    kept = trace_rows(directory / "train")
    assert 12 <= len(kept) < 60
    out, _ = probe(*train, cwd=directory)
    assert f"{60 - len(kept)} questions added; train holds 60" in out

    test = ("collect", *COLLECT, "--split", "test", "--limit", 12, "--samples", 4, "--chunk_size", 6)
    for shard, holds in ((0, "holds 6 of 12; the rest is the other shards'"), (1, "holds 12\n")):
        out, _ = probe(*test, "--output_dir", "test", "--num_shards", 2, "--shard", shard, cwd=directory)
        assert f"6 questions added; test {holds}" in out
    return directory


@pytest.fixture(scope="module")
def trained(place: Path) -> Path:
    thresholds = ("--thresholds", 0.7, 0.3, 0.4)  # so few questions need not have three clouds
    out, _ = probe("train", "--traces", "train", "--output_dir", "trained", *thresholds, cwd=place)
    assert "thresholds (given): normal from accuracy 0.700 with entropy up to 0.300 nats" in out
    assert "prompt length" in out
    return place / "trained"


def test_a_killed_collection_loses_and_repeats_nothing(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = ("collect", *COLLECT, "--limit", 60, "--samples", 4, "--chunk_size", 6, "--output_dir", "whole")
    monkeypatch.setenv("RANK", "1")  # every third chunk, as one of torchrun's processes would
    monkeypatch.setenv("WORLD_SIZE", "3")
    probe(*whole, cwd=place)
    straight, killed = trace_rows(place / "whole"), trace_rows(place / "train")
    assert [row["index"] for row in killed] == list(range(60))
    assert len({row["id"] for row in killed}) == 60
    assert [row["index"] for row in straight] == [i for i in range(60) if i // 6 % 3 == 1]
    for row in straight:
        assert row == killed[row["index"]]
    assert {row["level"] for row in killed} == {str(level) for level in range(1, 11)}
    assert any(row["accuracy"] > 0 for row in killed)


def test_from_a_probe_to_a_comparison(place: Path, trained: Path) -> None:
    from entropy_rft.difficulty import DifficultyProbe

    loaded = DifficultyProbe.from_pretrained(trained, base_model=DEFAULT_MODEL)
    assert (loaded.width, loaded.metrics["test"]["questions"]) == (128, 12)
    assert len(loaded.questions) == 48
    flags = ("--probe", trained, "--traces", "test", "--samples", 2, "--max_tokens", 96, "--output_dir", "evaluated")
    out, _ = probe("evaluate", *flags, "--train_traces", "train", cwd=place)
    written = json.loads((place / "evaluated" / "evaluation.json").read_text())
    policies = written["policies"]
    assert written["questions"] == 12
    assert written["classifier"].keys() == {"probe", "majority", "prompt_length", "pass_rate"}
    assert "prompt_length" in policies
    assert "to choose takes" in out
    assert policies.keys() >= {"easy", "normal", "hard", "random", "random_same_mix", "probe", "oracle"}
    assert policies["hard"]["tokens"] < policies["normal"]["tokens"]
    assert policies["hard"]["tokens"] <= 48
    assert policies["normal"]["accuracy"] > 0.3
    assert 0 < written["routing_seconds"] < 10
    assert written["levels"]["groups"]["1"]["accuracy"] > written["levels"]["groups"]["10"]["accuracy"]
    assert (place / "evaluated" / "report.html").read_text().count(' role="img"') == 3
    assert {"frontier.png", "u-shape.png"} <= {path.name for path in (place / "evaluated").iterdir()}
    assert max(map(len, out.splitlines())) <= 80

    seconds = {name: policy["seconds"] for name, policy in policies.items()}
    assert seconds["probe"] > written["routing_seconds"]
    assert "seconds" in out
    assert written["left_out"]["uncollected"] == 0
    assert written["settings"]["sampler"] == "transformers"

    # The answers are there: another confidence needs no new ones.
    chunk = next((place / "evaluated" / "answers").rglob("chunk-*.parquet"))
    before = chunk.stat().st_mtime_ns
    probe("evaluate", *flags, "--min_confidence", 1, cwd=place)
    sure = json.loads((place / "evaluated" / "evaluation.json").read_text())
    assert chunk.stat().st_mtime_ns == before
    assert sure["policies"]["probe"]["shares"] == {"easy": 0.0, "normal": 1.0, "hard": 0.0}
    assert sure["policies"]["normal"] == policies["normal"]


def test_an_unfinished_collection_is_named_and_its_answers_stay(place: Path, trained: Path) -> None:
    flags = ("--split", "test", "--limit", 4, "--samples", 1, "--chunk_size", 2, "--output_dir", "some")
    evaluate = ("evaluate", "--probe", trained, "--traces", "some", "--samples", 1, "--max_tokens", 40)
    evaluate = (*evaluate, "--chunk_size", 1, "--output_dir", "early")
    probe("collect", *COLLECT, *flags, "--num_shards", 2, "--shard", 1, cwd=place)
    out, _ = probe(*evaluate, cwd=place)
    assert "note: 2 questions are not collected yet; only the collected ones are used\n" in out
    found = json.loads((place / "early" / "evaluation.json").read_text())
    assert (found["questions"], found["left_out"]["uncollected"]) == (2, 2)
    assert "2 that are not collected yet" in (place / "early" / "report.html").read_text()
    stamps = {path: path.stat().st_mtime_ns for path in (place / "early").rglob("chunk-*.parquet")}
    assert len(stamps) == 2

    probe("collect", *COLLECT, *flags, cwd=place)
    out, _ = probe(*evaluate, cwd=place)
    assert "note:" not in out
    found = json.loads((place / "early" / "evaluation.json").read_text())
    assert (found["questions"], found["left_out"]["uncollected"]) == (4, 0)
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    assert len(list((place / "early").rglob("chunk-*.parquet"))) == 4


def test_tuned_strategies_go_into_a_probe(place: Path, trained: Path) -> None:
    flags = ("--probe", trained, "--traces", "train", "--samples", 1, "--max_tokens", 96)
    out, _ = probe("tune-strategies", *flags, "--temperatures", 0.5, "--fractions", 0.5, 1, cwd=place)
    assert "→" in out
    words = ("--strategies", "strategies.yaml", "--thresholds", 0.7, 0.3, 0.4)
    probe("train", "--traces", "train", *words, "--output_dir", "tuned", cwd=place)
    from entropy_rft.difficulty import DifficultyProbe, load_strategies

    assert DifficultyProbe.from_pretrained(place / "tuned").strategies == load_strategies(place / "strategies.yaml")


def test_limits_on_the_thinking_and_a_placement_go_into_a_probe(
    place: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from entropy_rft.difficulty import DifficultyProbe
    from entropy_rft.sampling import TransformersSampler
    from entropy_rft.sampling.thinking import ThinkingTags, longest_thinking

    flags = ("--probe", trained, "--traces", "train", "--samples", 1, "--max_tokens", 96, "--output", "limited.yaml")
    out, _ = probe("tune-strategies", *flags, "--temperatures", 0.5, "--thinking_tokens", 3, cwd=place)
    assert "≤3" in out
    (place / "limited.yaml").write_text("{easy: {thinking_tokens: 3}, normal: {thinking_tokens: 3}}")
    words = ("--strategies", "limited.yaml", "--placement", "user_end", "--thresholds", 0.7, 0.3, 0.4)
    probe("train", "--traces", "train", *words, "--output_dir", "limited", cwd=place)
    made = DifficultyProbe.from_pretrained(place / "limited")
    easy, *_ = made.strategies.values()
    assert (made.placement, easy.thinking_tokens) == ("user_end", 3)
    flags = ("--probe", "limited", "--traces", "test", "--samples", 1, "--max_tokens", 96, "--output_dir", "short")
    sample, thought = TransformersSampler.sample, []

    def watched(self: TransformersSampler, *arguments: Any, **keywords: Any) -> Any:
        groups = sample(self, *arguments, **keywords)
        if keywords.get("thinking_tokens") == 3:
            tags = ThinkingTags(self.tokenizer, "</think>")
            thought.extend(longest_thinking(tags, [], completion.token_ids) for group in groups for completion in group)
        return groups

    monkeypatch.setattr(TransformersSampler, "sample", watched)
    probe("evaluate", *flags, cwd=place)
    written = json.loads((place / "short" / "evaluation.json").read_text())
    assert written["settings"]["placement"] == "user_end"
    assert len(thought) == 2 * written["questions"]  # easy and normal
    # The model's own thinking has 30 tokens and more. (An answer that does not begin with the tag has no block.)
    assert max(thought) == 3


def test_answers_from_a_server(place: Path, random_model_dir: Path) -> None:
    """The server answers; the entropies and the hidden states are the local model's."""
    pytest.importorskip("httpx")
    asked = []

    class Server(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.answer({"data": [{"id": "served"}]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append(body)
            choice = {"token_ids": [5, 6, 7], "finish_reason": "length"}
            self.answer({"choices": [{**choice, "index": index} for index in range(body["n"])]})

        def answer(self, data: dict) -> None:
            text = json.dumps(data).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = ("--url", f"http://127.0.0.1:{server.server_port}/v1")
        flags = ("--model", random_model_dir, "--task", DEFAULT_TASK, "--limit", 5, "--samples", 3, "--max_tokens", 3)
        probe("collect", *flags, "--output_dir", "served", *url, cwd=place)
    finally:
        server.shutdown()
        server.server_close()
    assert [(body["model"], body["n"], body["max_tokens"]) for body in asked] == [("served", 3, 3)] * 5
    assert json.loads((place / "served" / "settings.json").read_text())["served_model"] == "served"
    rows = trace_rows(place / "served")
    assert [row["answer_tokens"] for row in rows] == [[3, 3, 3]] * 5
    assert len({row["entropy"] for row in rows}) == 5
    _, err = probe("collect", *flags, "--output_dir", "served", cwd=place, expected=2)
    assert "was started with sampler = 'openai', not 'transformers'" in err


@pytest.mark.skipif(not DATA.is_dir(), reason=f"the real questions are not at {DATA}")
def test_real_questions_of_rising_difficulty_run_through(place: Path, random_model_dir: Path) -> None:
    """What is shown is the pipeline: the model is random."""
    for level, (task, file) in enumerate(
        [("gsm8k", "gsm8k_test.jsonl"), ("jsonl", "amc23.jsonl"), ("jsonl", "aime24.jsonl")]
    ):
        probe(
            *("collect", "--model", random_model_dir, "--task", task, "--path", DATA / file, "--limit", 4),
            *("--samples", 2, "--max_tokens", 4, "--level", level, "--output_dir", f"real{level}"),
            cwd=place,
        )
    from entropy_rft.difficulty import load_traces
    from entropy_rft.difficulty.compare.comparison import by_level

    traces = load_traces(*(place / f"real{level}" for level in range(3)))
    assert [group["questions"] for group in by_level(traces)["groups"].values()] == [4, 4, 4]


TRAIN = ("train", "--traces", "train", "--output_dir", "x")
EVALUATE = ("evaluate", "--probe", "trained", "--traces", "test", "--output_dir", "x")
TUNE = ("tune-strategies", "--probe", "trained", "--traces", "train")
NEW = ("collect", *COLLECT, "--limit", 4, "--output_dir", "x")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("colect",), "invalid choice: 'colect'"),
        ((*NEW, "--samples", 0), "samples must be at least 1, got 0"),
        ((*NEW, "--thinking_tokens", -1), "thinking_tokens must be 0 or more, got -1"),
        ((*NEW, "--shard", 1), "--shard and --num_shards belong together"),
        ((*NEW, "--shard", 2, "--num_shards", 2), "shard must lie between 0 and 1"),
        ((*NEW, "--layer", 9), "layer must lie between -4 and 3 for this model, got 9"),
        ((*NEW, "--task_option", "path=x"), "'path' is not an option of a task"),
        ((*NEW, "--url", "here:8000"), "url must start with http:// or https://, got 'here:8000'"),
        ((*NEW, "--url", "http://127.0.0.1:1", "--vllm"), "--url and --vllm exclude each other"),
        ((*NEW[:-1], "train"), "was started with"),
        (("train", "--traces", "nowhere", "--output_dir", "x"), "'nowhere' has no settings.json"),
        ((*TRAIN, "--thresholds", 2, 0.3, 0.4), "accuracy_normal must be at least 0 and at most 1, got 2.0"),
        ((*TRAIN, "--strategies", "none.yaml"), "strategies 'none.yaml' cannot be read"),
        ((*TRAIN, "--test_fraction", 1), "fraction must lie between 0 and 1"),
        ((*TRAIN, "--epochs", 0), "epochs must be at least 1"),
        ((*EVALUATE, "--probe", "train"), "has no probe.json"),
        ((*EVALUATE, "--train_traces", "test"), "the probe was fitted to none of these traces' questions"),
        ((*EVALUATE, "--traces", "test", "./test"), "give each directory and each question once"),
        ((*EVALUATE, "--vllm_memory", 2), "vllm_memory must be above 0 and at most 1, got 2.0"),
        ((*TRAIN, "--learning_rate", 1e30), "learning_rate 1e+30: take a smaller one"),
        ((*EVALUATE, "--min_confidence", 2), "min_confidence must lie between 0 and 1, got 2.0"),
        ((*EVALUATE, "--traces", "whole-nothing"), "'whole-nothing' has no settings.json"),
        ((*TUNE, "--traces", "test"), f"the traces are of the split 'test' of {DEFAULT_TASK}"),
        ((*TUNE, "--fractions", 0), "max_tokens_fraction must be above 0"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(words: tuple, message: str, trained: Path) -> None:
    _, err = probe(*words, cwd=trained.parent, expected=2)
    line = err.splitlines()[-1]
    assert line.startswith("entropy-rft: error:")
    assert message in line


def test_a_model_of_nans_is_one_line(tmp_path: Path, random_model_dir: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(random_model_dir)
    model.model.norm.weight.data.fill_(float("nan"))
    model.save_pretrained(tmp_path / "nan")
    AutoTokenizer.from_pretrained(random_model_dir).save_pretrained(tmp_path / "nan")
    flags = ("--model", tmp_path / "nan", "--task", DEFAULT_TASK, "--limit", 2, "--samples", 1, "--max_tokens", 2)
    _, err = probe("collect", *flags, "--output_dir", "x", cwd=tmp_path, expected=2)
    assert err.splitlines()[-1] == (
        "entropy-rft: error: the model's logits are NaN or infinite: check its weights and dtype"
    )


def test_a_probe_of_another_model_is_refused(place: Path, trained: Path, random_model_dir: Path) -> None:
    flags = ("evaluate", "--probe", trained, "--traces", "test", "--output_dir", "other", "--model", random_model_dir)
    _, err = probe(*flags, cwd=place, expected=2)
    assert f"the probe was made for the base model {DEFAULT_MODEL!r}, not for" in err.splitlines()[-1]
