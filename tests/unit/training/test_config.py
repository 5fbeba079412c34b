from __future__ import annotations

import re
from pathlib import Path

import pytest
from rule_matrix import loose_fields, loosened
from trl import GRPOConfig

from entropy_rft import EntropyGRPOConfig
from entropy_rft.entropy import RULES, Rule
from entropy_rft.entropy.rules.clip_b import ClipB
from entropy_rft.entropy.rules.clip_v import ClipV

CPU = {"bf16": False, "use_cpu": True, "report_to": []}


@pytest.mark.parametrize(
    ("fields", "rule"),
    [
        ({}, None),
        ({"entropy_clip": "none"}, None),
        ({"entropy_clip": "clip_b"}, ClipB()),
        ({"entropy_clip": "clip_v"}, ClipV()),
        ({"entropy_clip": "clip_b", "entropy_clip_mu_low": 2.0}, ClipB(mu_low=2.0)),
        (
            {
                "entropy_clip": "clip_b",
                "entropy_clip_mu_low": 2,
                "entropy_clip_mu_high": 2,
                "entropy_clip_advantages": "all",
            },
            ClipB(mu_low=2, mu_high=2, advantages="all"),
        ),
        (
            {"entropy_clip": "clip_v", "entropy_clip_mu_low": float("inf"), "entropy_clip_max_fraction": 1},
            ClipV(mu_low=float("inf"), max_fraction=1),
        ),
    ],
)
def test_fields_become_the_rule(tmp_path: Path, fields: dict, rule: Rule | None) -> None:
    assert EntropyGRPOConfig(str(tmp_path), **CPU, **fields).build_entropy_clip() == rule


def test_fields_of_a_rule_that_is_not_on_are_said(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"entropy_clip_mu_low, entropy_clip_share: no effect: entropy_clip is none"):
        EntropyGRPOConfig(str(tmp_path), **CPU, entropy_clip_mu_low=2.0, entropy_clip_share=0.1)


@pytest.mark.parametrize("name", RULES)
def test_every_rule_has_its_fields_and_its_help(tmp_path: Path, name: str) -> None:
    options = loosened(name)
    rule = EntropyGRPOConfig(str(tmp_path), **CPU, **loose_fields(name)).build_entropy_clip()
    assert rule == RULES[name](**options)
    assert EntropyGRPOConfig(str(tmp_path), **CPU, entropy_clip=name).build_entropy_clip() == RULES[name]()
    about = EntropyGRPOConfig.__dataclass_fields__
    assert f"{name!r}: " in about["entropy_clip"].metadata["help"]
    for option in options:
        help = about[f"entropy_clip_{option}"].metadata["help"]
        assert re.search(rf"\b{name}\b", help)
        assert "preset" in help


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"entropy_clip": "clipb"}, ValueError, "entropy_clip must be one of .* got 'clipb'; did you mean clip_b"),
        ({"entropy_clip_mu_low": 0}, ValueError, "entropy_clip_mu_low must be above 0, got 0"),
        ({"entropy_clip_mu_high": -2.5}, ValueError, r"entropy_clip_mu_high must be above 0, got -2\.5"),
        ({"entropy_clip": "none", "entropy_clip_mu_low": -1}, ValueError, "entropy_clip_mu_low must be above 0"),
        ({"entropy_clip_mu_low": "a"}, TypeError, "entropy_clip_mu_low must be a number"),
        ({"entropy_clip_max_fraction": 2}, ValueError, "entropy_clip_max_fraction must be at most 1, got 2"),
        ({"entropy_clip_advantages": "negatives"}, ValueError, "did you mean negative"),
        ({"entropy_lens_steps": -1}, ValueError, r"entropy_lens_steps must be at least 0 \(never\), got -1"),
        ({"entropy_lens_steps": 2.5}, TypeError, "entropy_lens_steps must be a number of steps, got 2.5"),
        ({"entropy_lens_tokens": True}, TypeError, "entropy_lens_tokens must be a number of tokens, got True"),
        ({"entropy_lens_tokens": 3}, ValueError, "entropy_lens_tokens is 3, but entropy_lens_steps is 0: set it too"),
        ({"think_end_token": ""}, ValueError, "think_end_token must be a non-empty string"),
    ],
)
def test_mistakes_are_named_at_construction(tmp_path: Path, fields: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        EntropyGRPOConfig(str(tmp_path), **CPU, **fields)


def test_everything_else_is_trls(tmp_path: Path) -> None:
    ours, theirs = EntropyGRPOConfig(str(tmp_path), **CPU), GRPOConfig(str(tmp_path), **CPU)
    assert isinstance(ours, GRPOConfig)
    for name, value in theirs.to_dict().items():
        assert ours.to_dict()[name] == value or name == "logging_dir", name


def test_a_ready_grpo_config_is_upgraded(tmp_path: Path) -> None:
    theirs = GRPOConfig(str(tmp_path), **CPU, gradient_accumulation_steps=4, per_device_train_batch_size=2)
    ours = EntropyGRPOConfig.from_grpo(theirs)
    assert type(theirs) is GRPOConfig
    assert (ours.steps_per_generation, ours.entropy_clip, ours.output_dir) == (4, "none", str(tmp_path))
    assert "no entropy rule is switched on" in ours.switched_on()
    assert "switches one on: clip_b, clip_cov, " in ours.switched_on()
    ruled = EntropyGRPOConfig(str(tmp_path), **CPU, entropy_clip="clip_b").switched_on()
    assert ruled.startswith("args is a plain GRPOConfig: the rule clip_b is switched on (mu_low=2.5, ")


def test_the_words_of_a_field_are_those_that_trl_knows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from entropy_rft.training import config

    words = config._words_of_trl()
    assert words["loss_type"] >= {"grpo", "dr_grpo", "dapo", "bnpo"}
    assert words["importance_sampling_level"] == {"token", "sequence"}
    assert words["scale_rewards"] == {"group", "batch", "none"}
    with pytest.raises(ValueError, match=r"loss_type must be one of .*grpo.* got 'grop'; did you mean grpo"):
        EntropyGRPOConfig(str(tmp_path), **CPU, loss_type="grop")
    # A version with one more needs nothing here, and one whose source says nothing is asked itself.
    monkeypatch.setattr(config, "_words_of_trl", lambda: words | {"loss_type": words["loss_type"] | {"newer"}})
    assert EntropyGRPOConfig(str(tmp_path), **CPU, loss_type="newer").loss_type == "newer"
    monkeypatch.setattr(config, "_words_of_trl", lambda: {name: set() for name in words})
    assert EntropyGRPOConfig(str(tmp_path), **CPU, loss_type="another").loss_type == "another"
    assert EntropyGRPOConfig(str(tmp_path), **CPU, scale_rewards=False).scale_rewards == "none"
