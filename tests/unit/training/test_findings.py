from __future__ import annotations

import itertools
import math
import random
from types import SimpleNamespace
from typing import Any

import pytest

from entropy_rft.entropy import RULES
from entropy_rft.training.advice import Facts
from entropy_rft.training.findings import (
    CHECKS,
    FINDINGS,
    Finding,
    Levels,
    Watch,
    clear_change,
    first_and_last,
    jump,
    moved_in_vain,
    recent_mean,
    stays,
)

FIELDS = {
    "learning_rate": 2e-6,
    "num_generations": 8,
    "max_completion_length": 512,
    "max_grad_norm": 1.0,
    "temperature": 1.0,
}


def facts(rule: str | None = "clip_b", **fields: Any) -> Facts:
    """Of this package's configuration, with a rule or without one ("none"); of TRL's where `rule` is None."""
    args = SimpleNamespace(**FIELDS | fields)
    if rule is not None:
        args.build_entropy_clip = lambda: None if rule == "none" else RULES[rule]()
    return Facts(args)


def line(start: float, end: float, steps: int, noise: float = 0.0, seed: int = 0) -> list[float]:
    numbers = random.Random(seed)
    return [start + (end - start) * i / (steps - 1) + numbers.gauss(0, noise) for i in range(steps)]


def found(logs: dict[str, list[float]], known: Facts | None = None, every: int = 1, **levels: Any) -> list[Finding]:
    watch = Watch(Levels.of({"window": 5, "horizon": 30, **levels}), known or facts())
    rows = [dict(zip(logs, row, strict=True)) for row in zip(*logs.values(), strict=True)]
    return [finding for i, row in enumerate(rows, 1) for finding in watch.add(i * every, row)]


def names(*arguments: Any, **keywords: Any) -> list[str]:
    return [finding.name for finding in found(*arguments, **keywords)]


# --- conditions


def test_first_and_last_never_overlap() -> None:
    assert first_and_last([1, 2, 3], 2) is None
    assert first_and_last([1, 2, 3, 4], 2) == ([1, 2], [3, 4])
    assert first_and_last([0, 1, 2, 3, 4], 2, horizon=4) == ([1, 2], [3, 4])
    assert first_and_last([0, 1, 2, 3, 4], 2, horizon=3) is None
    assert first_and_last([], 1) is None


def test_a_change_is_measured_in_its_noise() -> None:
    noise = [0.4, 0.6] * 10
    assert clear_change(noise, noise) == 0
    assert clear_change(noise, [value + 0.1 for value in noise]) == pytest.approx(0.1 / math.sqrt(2 * 0.01 / 20))
    assert clear_change(noise, [value - 0.1 for value in noise]) < -3
    assert clear_change([0.0] * 5, [0.0] * 5) == 0
    assert clear_change([0.0] * 5, [-0.1] * 5) == -math.inf
    # Ten updates that share a log are one observation.
    few = [0.4] * 10 + [0.6] * 10
    assert clear_change(few, [value + 0.1 for value in few]) == pytest.approx(0.1 / math.sqrt(2 * 0.01 / 2))


@pytest.mark.parametrize(
    ("entropy", "reward", "factor", "expected"),
    [
        (line(1.0, 0.1, 40), line(0.5, 0.5, 40, 0.05), 0.5, True),
        (line(1.0, 0.1, 40), line(0.2, 0.9, 40, 0.05), 0.5, False),  # it pays
        (line(1.0, 0.9, 40, 0.2), line(0.5, 0.5, 40, 0.05), 0.5, False),
        (line(1.0, 0.1, 9), line(0.5, 0.5, 9), 0.5, False),  # too short to say
        (line(0.3, 0.9, 40), line(0.5, 0.3, 40, 0.05), 1.5, True),
        (line(0.3, 0.9, 40), line(0.2, 0.9, 40, 0.05), 1.5, False),
        (line(1.0, 0.1, 40), line(0.5, 0.5, 40), 1.5, False),
        ([0.0] * 40, [0.5] * 40, 0.5, False),  # a policy without entropy cannot lose any
    ],
)
def test_entropy_that_moves_in_vain(entropy: list, reward: list, factor: float, expected: bool) -> None:
    assert (moved_in_vain(entropy, reward, 5, 40, factor) is not None) is expected


def test_a_late_collapse_counts_though_the_reward_rose_before() -> None:
    entropy = [*line(1.0, 0.8, 40), *line(0.8, 0.2, 40)]
    reward = [*line(0.1, 0.6, 40), *line(0.6, 0.6, 40)]
    assert moved_in_vain(entropy, reward, 5, 40, 0.5) is not None
    assert moved_in_vain(entropy, reward, 5, 80, 0.5) is None


def test_small_conditions() -> None:
    assert stays([1, 0, 0, 0], 3, lambda x: x == 0)
    assert not stays([0, 0, 1, 0], 3, lambda x: x == 0)
    assert not stays([0, 0], 3, lambda x: x == 0)
    assert recent_mean([9, 1, 3], 2) == 2
    assert recent_mean([9], 2) is None
    assert jump([1, 1, 2, 30], 3, 1.0) == 30
    assert jump([1, 1, 2, 30], 3, 30.0) is None
    assert jump([1, 2, 30], 3, 1.0) is None
    assert jump([0, 0, 0, 30], 3, 1.0) is None  # there was no gradient to compare with


# --- checks

SICK: dict[str, dict[str, list[float]]] = {
    "entropy_collapse": {"entropy": line(1.0, 0.1, 40), "reward": line(0.5, 0.5, 40, 0.1)},
    "entropy_runaway": {"entropy": line(0.2, 0.9, 40), "reward": line(0.5, 0.5, 40, 0.1)},
    "rule_idle": {"entropy_clip/dropped": [0.0] * 40},
    "rule_at_bound": {"entropy_clip/dropped": [1e-4] * 40},
    "no_spread": {"frac_reward_zero_std": line(0.5, 1.0, 40)},
    "truncated": {"completions/clipped_ratio": line(0.1, 0.6, 40)},
    "thinking_collapse": {"completions/thinking_length": line(100, 10, 40), "reward": line(0.5, 0.5, 40, 0.1)},
    "thinking_explosion": {"completions/thinking_length": line(100, 600, 40), "reward": line(0.5, 0.5, 40, 0.1)},
    "sampler_mismatch": {"sampling/sampling_logp_difference/mean": [0.01] * 20 + [3.0] * 20},
    "inverted_reward": {"pear/below_wrong": [0.0] * 20 + [0.3] * 20},
    "pear_lengthens": {"pear/prefers_shorter": [0.6] * 20 + [0.1, 0.2] * 10},
    "gradient_jump": {"grad_norm": [0.5] * 30 + [40.0] * 10},
}
HEALTHY = {
    "entropy": line(0.4, 0.2, 40, 0.02),
    "reward": line(0.3, 0.8, 40, 0.05),
    "entropy_clip/dropped": [0.0, 3e-5] * 20,
    "frac_reward_zero_std": line(0.4, 0.6, 40, 0.1),
    "completions/clipped_ratio": line(0.2, 0.0, 40),
    "completions/thinking_length": line(100, 60, 40, 10),
    "sampling/sampling_logp_difference/mean": [0.02] * 40,
    "pear/below_wrong": [0.0] * 40,
    "pear/prefers_shorter": line(0.7, 0.5, 40, 0.1),
    "grad_norm": line(0.5, 0.9, 40, 0.1),
}


def test_every_finding_has_a_level_and_an_example() -> None:
    assert set(SICK) == set(FINDINGS) == set(Levels.__dataclass_fields__) - {"window", "horizon"}


@pytest.mark.parametrize("name", FINDINGS)
def test_each_finding_comes_once_names_a_value_and_can_be_switched_off(name: str) -> None:
    known = facts("clip_v" if name == "rule_at_bound" else "clip_b", top_p=0.9)
    [finding] = found(SICK[name], known)
    assert finding.name == name
    assert 5 <= finding.step <= 40
    assert "\n" not in finding.message
    assert any(character.isdigit() for character in finding.message.rpartition(": ")[2])  # a value to set
    assert found(SICK[name], known, **{name: False}) == []


def test_a_healthy_run_hears_nothing() -> None:
    for rule in (*RULES, "none", None):
        assert found(HEALTHY, facts(rule)) == []


@pytest.mark.parametrize("name", FINDINGS)
def test_nothing_is_said_of_what_is_not_a_number_or_too_short(name: str) -> None:
    assert found({metric: values[:3] for metric, values in SICK[name].items()}, facts("clip_v")) == []
    assert found({metric: [math.nan] * 40 for metric in SICK[name]}, facts("clip_v")) == []
    assert found({metric: [None] * 40 for metric in SICK[name]}, facts("clip_v")) == []  # type: ignore[dict-item]


def test_noise_alone_raises_no_alarm() -> None:
    for seed in range(20):
        noise = {
            metric: [abs(value) for value in line(level, level, 200, level / 4, seed)]
            for metric, level in (
                ("entropy", 0.3),
                ("reward", 0.5),
                ("completions/thinking_length", 80),
                ("grad_norm", 2),
            )
        }
        assert found(noise, window=20, horizon=100) == []


@pytest.mark.parametrize("every", [5, 10])
def test_noise_that_is_logged_rarely_raises_hardly_an_alarm(every: int) -> None:
    """Means of a few logs have a spread of their own: windows are so long that each has ten."""
    alarms = 0
    for seed in range(60):
        rows = 400 // every
        noise = {
            name: [abs(value) for value in line(level, level, rows, level / 4, seed)]
            for name, level in (("entropy", 0.3), ("reward", 0.5), ("completions/thinking_length", 80))
        }
        alarms += bool(found(noise, every=every, window=20, horizon=100))
    assert alarms <= 3
    falling = {"entropy": [1.0] * (rows // 2) + [0.2] * (rows // 2), "reward": line(0.5, 0.5, rows, 0.05)}
    assert names(falling, every=every, window=20, horizon=100) == ["entropy_collapse"]


@pytest.mark.parametrize(
    ("rule", "end", "expected"),
    [
        ("0.5x", 0.45, []),
        ("0.5x", 0.2, ["entropy_collapse"]),
        (0.2, 0.2, []),
        ("2x", 1.9, []),
        ("0.5x", 3.0, ["entropy_runaway"]),
    ],
)
def test_entropy_that_goes_where_the_rule_is_to_hold_it(rule: float | str, end: float, expected: list[str]) -> None:
    known = facts(None)
    known.knows_rules, known.rule = True, RULES["target"](rule)
    moved = {"entropy": [*line(1.0, end, 20), *line(end, end, 20)], "reward": line(0.5, 0.5, 40, 0.05)}
    assert names(moved, known, entropy_collapse=0.4) == expected


def test_what_is_set_already_is_not_advised() -> None:
    usual = {"vllm_importance_sampling_correction": True, "top_p": 1.0, "top_k": 0}
    [finding] = found(SICK["sampler_mismatch"], facts(None, **usual))
    assert finding.message.endswith(": check that both load the same weights, chat template and dtype")
    [finding] = found(SICK["sampler_mismatch"], facts(None, **usual | {"top_p": 0.9}))
    assert "set top_p to 1, check" in finding.message
    [finding] = found(SICK["truncated"], facts(None, mask_truncated_completions=True))
    assert finding.message.endswith("raise max_completion_length from 512 to 1024")
    [finding] = found(SICK["thinking_explosion"], facts(None, loss_type="dr_grpo"))
    assert "dr_grpo" not in finding.message


def test_windows_count_updates_and_not_lines() -> None:
    every = found({"completions/clipped_ratio": [0.5] * 40}, window=12)
    tenth = found({"completions/clipped_ratio": [0.5] * 4}, window=12, every=10)
    assert [finding.step for finding in (*every, *tenth)] == [12, 20]
    # A generation that serves two updates is logged with the first of them.
    watch = Watch(Levels(window=4, horizon=8), facts())
    logs = ({"grad_norm": 1.0} | ({"frac_reward_zero_std": 1.0} if step % 2 else {}) for step in itertools.count(1))
    steps = [step for step, entry in zip(range(1, 10), logs, strict=False) if watch.add(step, entry)]
    assert steps == [5]


def test_what_another_run_did_before_the_first_log_is_not_made_up() -> None:
    watch = Watch(Levels(window=4, horizon=8), facts(), start=100)
    steps = [step for step in range(101, 110) if watch.add(step, {"completions/clipped_ratio": 0.9})]
    assert steps == [104]


def test_a_summary_or_an_evaluation_is_no_update() -> None:
    watch = Watch(Levels(window=2, horizon=4), facts())
    for entry in ({"eval_reward": 1.0}, {"train_runtime": 3.0}, {"frac_reward_zero_std": 1.0}):
        assert watch.add(1, entry) == []
    assert watch.add(1, {"frac_reward_zero_std": 1.0}) == []  # again after the same update
    assert [finding.name for finding in watch.add(2, {"frac_reward_zero_std": 1.0})] == ["no_spread"]


def test_the_completion_stands_in_for_the_thinking() -> None:
    short = {"completions/mean_length": line(100, 10, 40), "reward": [0.5] * 40}
    assert names(short, facts(None)) == ["thinking_collapse"]
    assert names(short | {"completions/thinking_length": [50.0] * 40}) == []
    assert names(short | {"reward": line(0.1, 0.9, 40)}) == []  # shorter and better


@pytest.mark.parametrize(
    ("name", "rule", "fields", "expected"),
    [
        (
            "entropy_collapse",
            "clip_b",
            {},
            "lower entropy_clip_mu_low from 2.5 to 2, or lower learning_rate",
        ),
        ("entropy_collapse", "none", {}, "set entropy_clip to target (it is none), or lower learning_rate"),
        ("entropy_collapse", None, {}, "lower learning_rate from 2e-06 to 1e-06, or set epsilon_high to 0.28"),
        ("entropy_runaway", "clip_b", {}, "raise entropy_clip_mu_low from 2.5 to 3.8"),
        ("entropy_runaway", None, {"entropy_coef": 0.01}, "lower entropy_coef from 0.01 to 0.005"),
        ("entropy_runaway", None, {"temperature": 1.2}, "lower temperature from 1.2 to 1"),
        ("entropy_runaway", None, {}, "did not clearly rise in them: lower learning_rate from 2e-06 to 1e-06"),
        ("rule_idle", "clip_v", {}, "clip_v dropped no token in 20 updates.*lower entropy_clip_mu_low from 8.5 to 6.8"),
        ("rule_idle", "clip_cov", {}, "lower entropy_clip_cov_low from 1 to 0.5"),
        ("entropy_collapse", "target", {}, "raise entropy_clip_target from 0.5x to 0.75x, or lower learning_rate"),
        ("entropy_runaway", "target", {}, "lower entropy_clip_target from 0.5x to 0.35x"),
        ("entropy_collapse", "kl_cov", {}, "raise entropy_clip_share from 0.0002 to 0.002, or lower learning_rate"),
        ("entropy_runaway", "kl_cov", {}, "lower entropy_clip_share from 0.0002 to 2e-05, or lower learning_rate"),
        ("rule_at_bound", "clip_v", {}, "raise entropy_clip_max_fraction from 0.0001 to 0.001"),
        ("no_spread", None, {}, "raise num_generations from 8 to 16"),
        ("truncated", None, {}, "raise max_completion_length from 512 to 1024"),
        ("gradient_jump", None, {}, "80 times its median.*lower learning_rate from 2e-06 to 1e-06$"),
        ("gradient_jump", None, {"max_grad_norm": 0}, "and set max_grad_norm to 1"),
        ("inverted_reward", "none", {}, "pear_floor: 0.1"),
        ("truncated", None, {"max_completion_length": None}, "raise max_completion_length, or"),
        ("pear_lengthens", None, {}, "max_len: 512, min_value_wrong: 0, max_value_wrong: 0"),
        ("pear_lengthens", None, {"max_completion_length": None}, "max_len: 1024,"),
    ],
)
def test_the_sentence_names_a_field_of_the_run(name: str, rule: str | None, fields: dict, expected: str) -> None:
    import re

    [finding] = found(SICK[name], facts(rule, **fields))
    pattern = expected.replace("(", r"\(").replace(")", r"\)")
    assert re.search(pattern, finding.message), finding.message


def test_a_rule_is_judged_only_where_its_fields_say_what_it_should_do() -> None:
    assert names(SICK["rule_idle"], facts("none")) == []
    assert names({"entropy_clip/dropped": [0.1] * 40}, facts("clip_b")) == []  # it has no bound
    assert names({"entropy_clip/dropped": [2e-4] * 40}, facts("clip_cov")) == []  # the share is its dose
    assert names(SICK["rule_idle"], facts("target")) == []  # it need not drop anything
    assert names(SICK["rule_idle"], facts("kl_cov")) == []  # it drops nothing
    held = {"entropy_clip/dropped": [0.05] * 40, "entropy_clip/at_bound": [0.0] * 40}
    assert names(held, facts("target")) == []
    [finding] = found(held | {"entropy_clip/at_bound": [1.0] * 40}, facts("target"))
    assert "raise entropy_clip_max_fraction from 0.05 to 0.1, or set entropy_clip_target to" in finding.message


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"truncatd": 0.5}, "doctor: there is no level 'truncatd'; did you mean truncated"),
        ({"truncated": 1.5}, "doctor.truncated must be above 0 and at most 1, got 1.5"),
        ({"truncated": True}, "doctor.truncated must be a number, or false, got True"),
        ({"truncated": math.nan}, "doctor.truncated must be"),
        ({"gradient_jump": 1}, "doctor.gradient_jump must be above 1, got 1"),
        ({"window": 2.5}, "doctor.window must be a whole number of updates, got 2.5"),
        ({"window": False}, "doctor.window must be a whole number of updates, got False"),
        ({"window": 0}, "doctor.window must be at least 1, got 0"),
        ({"window": 60}, r"doctor.horizon must be at least twice doctor.window \(60\), got 100"),
        ({"sampler_mismatch": 0}, "doctor.sampler_mismatch must be above 0, got 0"),
    ],
)
def test_a_level_that_cannot_be_used_is_named(given: dict, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        Levels.of(given)


def test_the_checks_read_metrics_by_name_only() -> None:
    assert all(metric for check in CHECKS for alternatives in check.metrics for metric in alternatives)
    assert len(set(FINDINGS)) == len(CHECKS)


def test_a_preference_that_few_updates_show_is_no_finding() -> None:
    watch = Watch(Levels(), facts())
    for step in range(1, 61):  # one pair every twenty updates; the other metrics are there
        logs = {"reward": 0.5} | ({"pear/prefers_shorter": 0.0 if step < 50 else 0.1} if step % 20 == 0 else {})
        assert watch.add(step, logs) == []
