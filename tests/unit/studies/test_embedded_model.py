"""The second embedded model: what ships, and how it is made and measured."""

from __future__ import annotations

import json
import random
import re
from itertools import islice
from pathlib import Path
from statistics import fmean

import pytest

from entropy_rft.assets import MODULO_REASONER
from entropy_rft.models.sources import model_source
from entropy_rft.sampling import Completion, load_model_and_tokenizer
from entropy_rft.tasks import DIRECT, INSTRUCTIONS, STOP_EARLY
from entropy_rft.tasks.modulo import LEVELS, Chain, questions
from entropy_rft.tasks.task import chat_prompt
from studies.embedded.demonstrations import completion, expected
from studies.embedded.measure import accuracy, behaviour, correct, entropies, held_out, sample, written_steps

RESULTS = Path(__file__).parents[3] / "studies" / "embedded" / "results"


@pytest.fixture(scope="module")
def loaded():
    return load_model_and_tokenizer("modulo_reasoner", device="cpu")


@pytest.fixture(scope="module")
def sampled(loaded):
    items = held_out(6)
    return items, sample(*loaded, items, samples=4)


def test_it_is_found_by_its_name_and_small():
    assert model_source("modulo_reasoner") == str(MODULO_REASONER)
    assert sum(file.stat().st_size for file in MODULO_REASONER.iterdir()) < 4e6


def test_accuracy_falls_with_the_level(sampled):
    found = accuracy(*sampled)
    by_level = found["avg_by_level"]
    assert fmean(by_level[level] for level in "123") > 0.65
    assert by_level["1"] >= 0.85
    assert fmean(by_level[level] for level in ("8", "9", "10")) < 0.3
    assert found["truncated"] == 0
    assert found["longest"] < 200


def test_most_entropy_stands_at_forks_and_digits_are_sure(loaded, sampled):
    found = entropies(*loaded, *sampled)
    assert found["forks"] > 0.85
    assert found["probability_of_sampled_digit"] > 0.98


def test_wrong_steps_are_what_was_taught_and_checks_repair_them(sampled):
    found = behaviour(*sampled)
    assert found["wrong_as_taught"] > 0.95
    assert found["repaired_of_checked_wrong"] > 0.5


def test_instructions_shorten(loaded):
    items = held_out(2)
    lengths = {
        instruction: fmean(
            len(group[0].token_ids) for group in sample(*loaded, items, samples=1, instruction=instruction)
        )
        for instruction in (None, DIRECT, STOP_EARLY)
    }
    assert lengths[DIRECT] < lengths[STOP_EARLY] < lengths[None]
    assert lengths[DIRECT] < 0.7 * lengths[None]


def test_prompts_have_one_length(loaded):
    _, tokenizer = loaded
    texts = [
        tokenizer.apply_chat_template(chat_prompt(item.question, None, None), tokenize=False) for item in held_out(3)
    ]
    assert len({len(ids) for ids in tokenizer(texts)["input_ids"]}) == 1


def test_thinking_tokens_are_those_before_the_marker(loaded):
    _, tokenizer = loaded
    item = next(questions("test", levels=[10]))
    text = completion(item, "step", random.Random(0))
    ids = tokenizer(text + tokenizer.eos_token, add_special_tokens=False)["input_ids"]
    found = accuracy([item], [[Completion([1], ids, text, truncated=False)]])
    assert found["thinking_tokens"] == ids.index(tokenizer.convert_tokens_to_ids("</think>"))


def test_a_step_that_no_question_has_is_left_out():
    assert written_steps("Recall 3*2=6.\n") == []
    (step,) = written_steps("Split 3+8=7+4=1. Check 7+4=1 yes. Again 7+4=1 yes.\n")
    assert (step.first, step.checked, step.repeats, step.right) == (1, 1, 1, 1)


def test_only_the_answer_after_the_marker_counts():
    item = Chain(7, (("+", 2),) * 5)
    assert correct("<think>\n</think>\nThe answer is \\boxed{7}.", item)
    assert not correct("<think>\nThe answer is \\boxed{7}.\n</think>\nThe answer is \\boxed{6}.", item)


def test_held_out_questions_are_test_questions():
    items = held_out(3, hardest=5)
    assert [item.level for item in items] == [*LEVELS] * 3 + [10, 10]
    assert {item.split for item in items} == {"test"}
    assert len(set(items)) == len(items)


def test_the_first_word_tells_the_weight():
    words = {expected(item) for item in islice(questions("train"), 60)}
    assert words == {"Easy", "Fair", "Hard"}


# The maker


def test_the_maker_writes_a_model_that_loads(tmp_path, capsys):
    from studies.embedded.make import main

    made = tmp_path / "made"
    options = ["--drill-steps", "2", "--steps", "2", "--batch-size", "4", "--seed", "5"]
    assert main(["--output", str(made), *options]) == 0
    provenance = json.loads((made / "provenance.json").read_text())
    assert provenance["recipe"]["seed"] == 5
    assert provenance["command"].endswith("--seed 5")
    model, tokenizer = load_model_and_tokenizer(made, device="cpu")
    assert model.num_parameters() == provenance["parameters"]
    assert tokenizer.decode(tokenizer(INSTRUCTIONS[0])["input_ids"]) == INSTRUCTIONS[0]


def test_only_what_follows_from_the_rest_is_drilled():
    from studies.embedded.make import ModelSettings, drills, make_tokenizer

    tokenizer = make_tokenizer(0)
    input_ids, _, labels = next(drills(tokenizer, ModelSettings(batch_size=4)))
    results = re.findall(r"=((?:\d[-+]\d=)?\d)\.\n", tokenizer.decode(input_ids[0]))
    assert tokenizer.decode(labels[0][labels[0] != -100]) == "".join(results)
    assert tokenizer.decode(labels[3][labels[3] != -100]) in ("Easy.\n", "Fair.\n", "Hard.\n")


# What was measured


def test_the_table_says_what_the_results_hold():
    """Each run of plain GRPO that is kept meets R1 to R9, but for single batches in R4 and one run in R2."""
    from studies.embedded.report import rows_of_run

    runs = sorted(RESULTS.glob("grpo-*.json"))
    missed = {"grpo-1.json": {"R2 entropy"}}
    assert len(runs) >= 2
    for path in runs:
        run = json.loads(path.read_text())
        rows = rows_of_run(run)
        assert len(rows) == 9
        assert {name for name, _, met in rows if not met} <= {"R4 truncated"} | missed.get(path.name, set())
        assert fmean(run["curves"]["completions/clipped_ratio"]) < 0.01
