"""The model that ships with the package, and the maker on a handful of steps."""

from __future__ import annotations

import itertools
import json
import random
import re
import subprocess
import sys
from statistics import fmean

import pytest

from entropy_rft.assets import TINY_REASONER
from entropy_rft.tasks import DIRECT, INSTRUCTIONS, load_task
from entropy_rft.tasks.arithmetic import LEVELS, Sum, draw
from studies.assets.demonstrations import EARLY_STEPS, chance, completion, drill

MAX_TOKENS = 192


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(TINY_REASONER)


@pytest.fixture(scope="module")
def model():
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(TINY_REASONER)


def _sample(model, tokenizer, questions: int, **options):
    from entropy_rft.sampling import TransformersSampler

    task = load_task("arithmetic", split="test", limit=questions, seed=1, **options)
    sampler = TransformersSampler(model, tokenizer, batch_size=questions)
    groups = sampler.sample(task.dataset["prompt"][:], max_tokens=MAX_TOKENS, seed=1, progress=False)
    completions = [group[0] for group in groups]
    messages = [[{"role": "assistant", "content": completion.text}] for completion in completions]
    return completions, task.reward_funcs[0](completions=messages, solution=task.dataset["solution"][:])


# The model


def test_it_is_small_and_complete(model):
    assert (TINY_REASONER / "model.safetensors").stat().st_size <= 4_000_000
    assert 800_000 <= model.num_parameters() <= 1_000_000
    assert model.config.tie_word_embeddings
    assert model.config.max_position_embeddings >= 4096
    names = {file.name for file in TINY_REASONER.iterdir()}
    assert {"README.md", "provenance.json", "generation_config.json", "tokenizer.json"} <= names
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pkl"))]


def test_provenance_says_how_good_it_is():
    plain = json.loads((TINY_REASONER / "provenance.json").read_text())["measured"]["none"]
    assert 0.5 <= plain["accuracy"] <= 0.75
    assert plain["accuracy_by_terms"]["2"] >= 0.95
    assert plain["accuracy_by_terms"]["7"] <= 0.4
    accuracies = [plain["accuracy_by_terms"][str(level)] for level in LEVELS]
    assert accuracies == sorted(accuracies, reverse=True)
    assert plain["pass@8"] > plain["accuracy"] + 0.15
    assert plain["entropy_thinking"] > 5 * plain["entropy_answer"]


def test_eos_ends_a_turn(model, tokenizer):
    assert tokenizer.eos_token == "<|im_end|>"
    assert model.generation_config.eos_token_id == model.config.eos_token_id == tokenizer.eos_token_id
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert tokenizer.padding_side == "left"


def test_markers_are_single_tokens_that_decoding_keeps(tokenizer):
    for marker in ("<think>", "</think>"):
        (token,) = tokenizer(marker)["input_ids"]
        assert token not in tokenizer.all_special_ids
    ids = tokenizer("<|im_start|>assistant\n<think>\n1+1=2.\n</think>\nThe answer is \\boxed{2}.<|im_end|>")[
        "input_ids"
    ]
    text = tokenizer.decode(ids, skip_special_tokens=True)
    assert text == "assistant\n<think>\n1+1=2.\n</think>\nThe answer is \\boxed{2}."


@pytest.mark.parametrize(
    "text",
    [
        "Natalia sold clips to 48 of her friends, at $1,234.50 each.",
        "Żółć, 日本語, naïve, 🎉👩‍👩‍👧, \u2028 and \x00 and \x7f",
        " two  blanks\n\n\tand tabs \r\n ",
        "$\\frac{1}{2}$ </think> <think>",
        "",
    ],
)
def test_any_text_survives_the_tokenizer(tokenizer, text):
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_digits_are_tokens_of_their_own(tokenizer):
    assert tokenizer.convert_ids_to_tokens(tokenizer("12345")["input_ids"]) == list("12345")


def test_chat_template(tokenizer):
    def render(messages, **options):
        return tokenizer.apply_chat_template(messages, tokenize=False, **options)

    user = {"role": "user", "content": "What is 1 + 1?"}
    start = "<|im_start|>user\nWhat is 1 + 1?<|im_end|>\n"
    assert render([user]) == start
    assert render([user], add_generation_prompt=True) == start + "<|im_start|>assistant\n"
    system = {"role": "system", "content": DIRECT}
    assert render([system, user]) == f"<|im_start|>system\n{DIRECT}<|im_end|>\n{start}"
    parts = {"role": "user", "content": [{"type": "text", "text": "What is "}, {"type": "text", "text": "1 + 1?"}]}
    assert render([parts]) == start
    reply = {"role": "assistant", "content": "<think>\n\n</think>\n2"}
    # What was said stays a prefix of what is said next.
    assert render([user, reply, user]).startswith(render([user], add_generation_prompt=True) + reply["content"])


def test_accuracy_on_held_out_questions(model, tokenizer):
    completions, rewards = _sample(model, tokenizer, 96)
    easy, hard = rewards[0::6], rewards[5::6]
    assert 0.4 <= fmean(rewards) <= 0.85
    assert fmean(easy) >= 0.85
    assert fmean(hard) <= 0.7
    assert sum(completion.truncated for completion in completions) <= 2
    assert all(completion.text.startswith("<think>") for completion in completions)


def test_each_instruction_has_its_questions():
    """What the model's card says, so that a strategy can matter: direct for easy ones, in a hurry for hard ones."""
    measured = json.loads((TINY_REASONER / "provenance.json").read_text())["measured"]
    accuracy = {name: result["accuracy_by_terms"] for name, result in measured.items()}
    tokens = {name: result["tokens_by_terms"] for name, result in measured.items()}
    assert accuracy["direct"]["2"] >= accuracy["step_by_step"]["2"] - 0.05
    assert accuracy["direct"]["5"] <= accuracy["step_by_step"]["5"] - 0.1
    assert accuracy["stop_early"]["4"] <= accuracy["step_by_step"]["4"] - 0.1
    for level in map(str, LEVELS):
        assert tokens["direct"][level] < 0.75 * tokens["step_by_step"][level]
        assert tokens["stop_early"][level] < tokens["step_by_step"][level]


def test_direct_is_shorter(model, tokenizer):
    long, _ = _sample(model, tokenizer, 48)
    short, direct_right = _sample(model, tokenizer, 48, instruction=DIRECT)
    assert 1.5 * fmean(len(c.token_ids) for c in short) < fmean(len(c.token_ids) for c in long)
    assert fmean(direct_right[0::6]) >= 0.75  # the easy ones


def test_finding_the_model_imports_nothing_heavy():
    code = "import sys, entropy_rft.assets as a; print(a.TINY_REASONER.is_dir(), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False"]


# What it learned from


def _result(text: str) -> int:
    return int(re.fullmatch(r"<think>\n.*\n</think>\nThe answer is \\boxed\{(\d+)\}\.", text, re.DOTALL)[1])


def test_drill_lines_are_true():
    for line in drill(random.Random(0), count=200).splitlines():
        expression, _, result = line.removesuffix(".").partition("=")
        assert eval(expression) == int(result)
        assert 0 <= int(result) <= 99


@pytest.mark.parametrize("style", ["direct", "step", "early"])
def test_traces_end_in_a_boxed_result(style):
    rng = random.Random(0)
    for _ in range(200):
        item = draw(rng, rng.choice(LEVELS), "train")
        assert abs(_result(completion(item, style, rng)) - item.answer) <= 60


def test_one_step_slips_only_in_a_hurry():
    rng = random.Random(3)
    items = [draw(rng, 2, "train") for _ in range(300)]
    wrong = {
        style: sum(_result(completion(item, style, rng)) != item.answer for item in items)
        for style in ("step", "direct", "early")
    }
    assert wrong["step"] == wrong["direct"] == 0
    assert 50 <= wrong["early"] <= 150  # a third


def test_remarks_and_repeats_change_no_result():
    """The last different step of a trace ends in the boxed result, and each step starts where the last one ended."""
    rng = random.Random(1)
    for _ in range(200):
        text = completion(draw(rng, 7, "train"), "step", rng)
        steps = re.findall(r"(\d+)[+-]\d+=(\d+)\.", text)
        assert int(steps[-1][1]) == _result(text)
        for before, step in itertools.pairwise(steps):
            assert step == before or step[0] == before[1]


def test_direct_and_early_write_a_chain_of_steps():
    """`17+12=29-8=21.` has every step, and starts where the lines before it ended."""
    rng = random.Random(2)
    for _ in range(50):
        item = draw(rng, 7, "train")
        direct, early = completion(item, "direct", rng), completion(item, "early", rng)
        for text, steps in ((direct, 6), (early, 6 - EARLY_STEPS)):
            chain = re.search(rf"(\d+)((?:[+-]\d+=\d+){{{steps}}})\.", text)
            assert int(chain[0].rstrip(".").rpartition("=")[2]) == _result(text)
        lines = re.findall(r"(?m)^(\d+)([+-]\d+)=(\d+)\.$", early)
        assert [int(term) for _, term, _ in lines] == list(item.terms[1 : EARLY_STEPS + 1])
        assert re.search(r" (\d+)(?:[+-]\d+=\d+){2}\.", early)[1] == lines[-1][2]


def test_a_careful_sum_is_harder_the_longer_it_is_and_the_more_it_takes_away():
    def likely(*terms: int) -> float:
        return chance(Sum(terms))

    assert likely(50, 5) == 1
    assert likely(50, 5, 5) > likely(50, 5, -5) > likely(50, 5, -5, -5) > likely(50, 5, -5, -5, -5) > 0
    rng = random.Random(4)
    levels = [fmean(chance(draw(rng, level, "train")) for _ in range(200)) for level in LEVELS]
    assert levels == sorted(levels, reverse=True)
    hits = []
    items = [draw(rng, 5, "train") for _ in range(1000)]
    for item in items:
        # A second slip may undo the first, and a slip is not made where nothing of it would stay in range.
        hits.append(_result(completion(item, "step", rng)) == item.answer)
    assert fmean(hits) == pytest.approx(fmean(chance(item) for item in items), abs=0.08)


def test_easy_and_hard_sums_are_talked_about_most():
    """The U: what the model writes besides its steps, by how likely the sum is to end well."""
    rng = random.Random(5)
    chatter = {"easy": [], "normal": [], "hard": []}
    for _ in range(900):
        item = draw(rng, rng.choice(LEVELS), "train")
        kind = "easy" if chance(item) > 0.92 else "hard" if chance(item) < 0.55 else "normal"
        chatter[kind].append(len(re.findall(r"[A-Za-z]+", completion(item, "step", rng))) / len(item.terms))
    assert min(fmean(chatter["easy"]), fmean(chatter["hard"])) > 1.5 * fmean(chatter["normal"])


# The maker


def test_the_maker_writes_a_model_that_loads(tmp_path, capsys):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from studies.assets.make import main

    options = ["--drill-steps", "2", "--steps", "2", "--batch-size", "4", "--questions", "6", "--seed", "5"]
    assert main(["--output", str(tmp_path / "made"), *options]) == 0
    made = tmp_path / "made"
    provenance = json.loads((made / "provenance.json").read_text())
    assert provenance["recipe"]["seed"] == 5
    assert provenance["command"].endswith("--seed 5")
    assert set(provenance["measured"]) == {"none", "step_by_step", "stop_early", "direct"}
    assert provenance["parameters"] == AutoModelForCausalLM.from_pretrained(made).num_parameters()
    assert "| stop early |" in (made / "README.md").read_text()
    printed = capsys.readouterr().out
    # DeepSpeed, where it is installed, says on the same stream that there is no GPU.
    assert json.loads(printed[printed.index("\n{") + 1 if "\n{" in printed else 0 :]) == provenance["measured"]
    tokenizer = AutoTokenizer.from_pretrained(made)
    assert tokenizer.decode(tokenizer(INSTRUCTIONS[0])["input_ids"]) == INSTRUCTIONS[0]


def test_the_same_seed_makes_the_same_model():
    import torch

    from studies.assets.make import ModelSettings, make_model, make_tokenizer, train

    def weights(seed: int):
        tokenizer = make_tokenizer(seed)
        model = make_model(tokenizer, seed)
        train(model, tokenizer, ModelSettings(seed=seed, drill_steps=1, steps=2, batch_size=2))
        return tokenizer.get_vocab(), model.lm_head.weight.detach()

    (vocab, one), (same_vocab, same) = weights(3), weights(3)
    assert vocab == same_vocab
    assert torch.equal(one, same)


def test_only_results_are_drilled():
    from studies.assets.make import ModelSettings, drills, make_tokenizer

    tokenizer = make_tokenizer(0)
    input_ids, _, labels = next(drills(tokenizer, ModelSettings(batch_size=3)))
    results = re.findall(r"=(\d+\.\n)", tokenizer.decode(input_ids[0]))
    assert tokenizer.decode(labels[0][labels[0] != -100]) == "".join(results)
