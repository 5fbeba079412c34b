from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml

from entropy_rft.training.recipe import Recipe, RecipeParser, without_secrets

RECIPES = Path(__file__).parents[3] / "recipes"
CPU = {"bf16": False, "use_cpu": True, "report_to": "none"}


def parse(tmp_path: Path, fields: dict, *flags: str) -> Recipe:
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump({"output_dir": str(tmp_path / "run"), **CPU, **fields}))
    return RecipeParser().parse(["--config", str(file), *flags])


def test_flags_override_the_file_and_given_says_what_was_given(tmp_path: Path) -> None:
    recipe = parse(tmp_path, {"learning_rate": 1e-5, "max_steps": 7, "rewards": ["pear"]}, "--max_steps", "3")
    assert (recipe.training.max_steps, recipe.training.learning_rate, recipe.task.rewards) == (3, 1e-5, ["pear"])
    assert recipe.given["max_steps"] == 3
    assert "beta" not in recipe.given


def test_resolved_recipe_makes_the_same_run_again(tmp_path: Path) -> None:
    first = parse(
        tmp_path,
        {
            "entropy_clip": "clip_v",
            "rewards": ["pear"],
            "pear_floor": 0.1,
            "steps_per_generation": 2,
            "gradient_checkpointing": False,
            "task_options": {"levels": [2, 3]},
        },
        "--learning_rate=2e-5",
    )
    again = parse(tmp_path, first.resolved())
    assert again.resolved() == first.resolved()
    assert again.training.to_dict() == first.training.to_dict()
    assert (again.task, again.model) == (first.task, first.model)
    assert again.training.gradient_checkpointing is False


def test_negated_flags_and_checkpoints_in_the_resolved_recipe(tmp_path: Path) -> None:
    recipe = parse(
        tmp_path,
        {"gradient_checkpointing": True, "output_dir": 5},
        *("--no_gradient_checkpointing", "--resume_from_checkpoint", "auto"),
    )
    assert recipe.training.gradient_checkpointing is False
    assert recipe.resolved()["gradient_checkpointing"] is False
    assert recipe.resolved()["output_dir"] == "5"
    assert "resume_from_checkpoint" not in recipe.resolved()


def test_several_loggers(tmp_path: Path) -> None:
    recipe = parse(tmp_path, {"report_to": ["tensorboard", "wandb"]})
    assert recipe.training.report_to == ["tensorboard", "wandb"]


def test_environment_and_a_single_reward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_VARIABLE", "before")
    recipe = parse(tmp_path, {"env": {"SOME_VARIABLE": 5}, "rewards": "pear"})
    assert os.environ["SOME_VARIABLE"] == "5"
    assert recipe.task.rewards == ["pear"]


def test_rewards_with_arguments(tmp_path: Path) -> None:
    cosine = {"name": "cosine_scaled", "max_len": 100}
    pear = {"name": "pear", "correctness": {"name": "cosine_scaled", "max_len": 9}, "alpha": 0.5}
    wanted = ["task", cosine, pear, {"path": "mine:reward", "words": ["a", "b"]}]
    recipe = parse(tmp_path, {"rewards": [*wanted[:3], {"path": "mine:reward", "words": ["a", "b"]}, {"name": "task"}]})
    assert recipe.task.rewards == [*wanted, "task"]  # in the shortest form
    again = parse(tmp_path, yaml.safe_load(yaml.safe_dump(recipe.resolved())))
    assert again.resolved() == recipe.resolved()
    assert again.resolved()["rewards"] == [*wanted, "task"]
    assert parse(tmp_path, {"rewards": cosine}).task.rewards == [cosine]
    flags = ["--rewards", "task", "{name: cosine_scaled, max_len: 100}", '{"path": "mine:reward", "words": ["a", "b"]}']
    flagged = parse(tmp_path, {"rewards": ["pear"]}, *flags)
    assert flagged.task.rewards == flagged.resolved()["rewards"] == ["task", cosine, wanted[3]]


@pytest.mark.parametrize(
    ("fields", "flags", "message"),
    [
        ({"learning_rat": 1}, [], "unknown key 'learning_rat'; did you mean learning_rate"),
        ({}, ["--max_step", "3"], "unknown option --max_step; did you mean --max_steps"),
        ({"max_steps": "many"}, [], "max_steps.*'many'"),
        ({"max_steps": [1, 2]}, [], r"max_steps cannot be \[1, 2\]"),
        ({"learning_rate": True}, [], "learning_rate cannot be True"),
        ({}, ["--max_steps", "x"], "argument --max_steps.*: invalid int value: 'x'"),
        ({"entropy_clip": "clipb"}, [], "entropy_clip.*did you mean clip_b"),
        ({"per_device_train_batch_size": 8, "num_generations": 3}, [], r"\(8\) must be divisible by num_generations"),
        ({"entropy_clip_mu_low": -1}, [], "entropy_clip_mu_low must be above 0"),
        ({"task_options": "[1"}, [], "task_options must be a JSON mapping"),
        ({}, ["--config"], "--config needs"),
        ({"learning_rate": None}, [], "learning_rate cannot be empty"),
        ({"rewards": [{"nmae": "pear"}]}, [], "rewards: .* has neither name nor path; did you mean name?"),
        ({"rewards": [5]}, [], "rewards: 5 is no reward: give a name, module:function, or a mapping"),
        ({}, ["--rewards", "{name: pear"], "rewards: '{name: pear' is no mapping"),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, fields: dict, flags: list[str], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message) as error:
        parse(tmp_path, fields, *flags)
    assert "\n" not in str(error.value)


def test_secrets_are_written_nowhere(tmp_path: Path) -> None:
    for recipe in (parse(tmp_path, {"hub_token": "hf_a"}), parse(tmp_path, {}, "--hub_token", "hf_a")):
        assert recipe.training.hub_token == "hf_a"
        assert "hf_a" not in yaml.safe_dump(recipe.resolved())
    words = ["train", "--hub_token", "hf_a", "--seed", "1", "--hub-token=hf_b"]
    assert without_secrets(words) == ["train", "--hub_token", "...", "--seed", "1", "--hub-token=..."]


@pytest.mark.parametrize(
    ("text", "message"), [("a: [", "is not YAML"), ("- 1", "must be a mapping"), ("just text", "must be a mapping")]
)
def test_files_that_are_no_recipes(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
        RecipeParser().parse(["--config", str(file)])
    with pytest.raises(ValueError, match=r"'none\.yaml' cannot be read: No such file"):
        RecipeParser().parse(["--config", "none.yaml"])


@pytest.mark.parametrize("file", sorted(RECIPES.glob("tiny/*.yaml")), ids=lambda file: file.name)
def test_every_tiny_recipe_parses(file: Path, tmp_path: Path) -> None:
    recipe = RecipeParser().parse(["--config", str(file), "--output_dir", str(tmp_path)])
    assert recipe.given.keys() > {"output_dir", "task", "rewards"}
    assert Path(yaml.safe_load(file.read_text())["output_dir"]).name == file.stem
    assert f"recipes/tiny/{file.name}" in file.read_text()


def written(tmp_path: Path, text: str) -> Recipe:
    file = tmp_path / "written.yaml"
    file.write_text(f"output_dir: {tmp_path / 'run'}\nuse_cpu: true\nbf16: no\n{text}\n")
    return RecipeParser().parse(["--config", str(file)])


@pytest.mark.parametrize("word", ["no", "No", "off", "false", "'no'"])
def test_words_that_yaml_takes_for_truth_values_are_words(word: str, tmp_path: Path) -> None:
    if word != "off":
        for name in ("save_strategy", "eval_strategy", "logging_strategy"):
            assert getattr(written(tmp_path, f"{name}: {word}").training, name) == "no"
    if word != "'no'":
        assert written(tmp_path, f"report_to: {word}").training.report_to == []
    assert written(tmp_path, f"task_options: {{a: {word}}}").task.task_options == {"a": yaml.safe_load(word)}


def test_they_stay_truth_values_where_the_field_takes_one(tmp_path: Path) -> None:
    recipe = written(tmp_path, "gradient_checkpointing: off\nshuffle_dataset: no\nlog_completions: on\nrun_name: no")
    args = recipe.training
    assert (args.bf16, args.gradient_checkpointing, args.shuffle_dataset, args.log_completions) == (
        *(False, False, False, True),
    )
    assert args.run_name == "no"
    assert written(tmp_path, "scale_rewards: false").training.scale_rewards == "none"


@pytest.mark.parametrize("field", ["lr_scheduler_type", "entropy_clip", "optim", "loss_type"])
def test_a_word_that_is_none_of_a_fields_is_shown_as_it_was_written(field: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"{field}.*'(off|No)'"):
        written(tmp_path, f"{field}: {'off' if field != 'entropy_clip' else 'No'}")


def test_whether_to_go_on_with_changes_is_no_part_of_the_recipe(tmp_path: Path) -> None:
    assert parse(tmp_path, {}).resume_with_changes is False
    for recipe in (parse(tmp_path, {"resume_with_changes": True}), parse(tmp_path, {}, "--resume_with_changes")):
        assert recipe.resume_with_changes is True
        assert "resume_with_changes" not in recipe.resolved()


def test_the_doctor_is_on_and_its_levels_are_a_mapping(tmp_path: Path) -> None:
    assert parse(tmp_path, {}).doctor.build(None) is not None
    recipe = parse(tmp_path, {"doctor": {"window": 5, "truncated": False}, "doctor_stop": "no_spread"})
    doctor = recipe.doctor.build(None)
    assert doctor is not None
    assert (doctor.levels.window, doctor.levels.truncated, doctor.stop) == (5, None, ["no_spread"])
    flagged = parse(tmp_path, {}, "--doctor", '{"window": 5}', "--doctor_stop", "no_spread", "truncated").doctor
    assert (flagged.doctor, flagged.doctor_stop) == ({"window": 5}, ["no_spread", "truncated"])
    again = parse(tmp_path, recipe.resolved())
    assert (again.doctor, again.resolved()) == (recipe.doctor, recipe.resolved())


def test_the_doctor_can_be_switched_off_and_may_stop_at_anything(tmp_path: Path) -> None:
    for word in ("false", "no", "off"):
        assert written(tmp_path, f"doctor: {word}").doctor.build(None) is None
        assert written(tmp_path, f"doctor_stop: {word}").doctor.doctor_stop == []
    assert parse(tmp_path, {}, "--doctor", "false").resolved()["doctor"] is False
    for word in ("true", "yes", "all"):
        assert written(tmp_path, f"doctor_stop: {word}").doctor.doctor_stop == ["all"]
    with pytest.raises(ValueError, match="there is no level 'windo'; did you mean window"):
        parse(tmp_path, {"doctor": {"windo": 5}})


@pytest.mark.parametrize(
    ("flag", "value"), [("accelerator_config", '{"dispatch_batches": false}'), ("debug", "underflow_overflow")]
)
def test_objects_of_transformers_become_plain_values(tmp_path: Path, flag: str, value: str) -> None:
    resolved = yaml.safe_load(yaml.safe_dump(parse(tmp_path, {}, f"--{flag}", value).resolved()))
    assert parse(tmp_path, resolved).resolved()[flag] == resolved[flag]
    assert resolved[flag] == ["underflow_overflow"] or resolved[flag]["dispatch_batches"] is False
