"""Which runs a study is made of, which are due, and how hyperparameters are chosen."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from studies.methods.plan import Measurement, Method, Plan, RunSpec, Sweep, load_plan
from studies.methods.results import Results
from studies.methods.search import all_runs, choose, runs_due

ROOT = Path(__file__).parents[3]
RECIPES = ROOT / "recipes" / "studies"
RESULTS = ROOT / "scripts" / "results"


def names(specs: list[RunSpec]) -> list[str]:
    return [spec.name for spec in specs]


def test_first_the_baselines_search_then_the_others_then_the_runs(
    plan: Plan, results: Results, finish: Callable[..., None]
) -> None:
    due, _ = runs_due(plan, results)
    assert names(due) == ["trial-grpo-0-seed100", "trial-grpo-1-seed100", "start-seed0", "start-seed1"]
    assert [spec.fields["learning_rate"] for spec in due[:2]] == [1e-4, 2e-4]
    assert {spec.measurement.split for spec in due[:2]} == {"validation"}
    finish(due[0], accuracy=0.5)
    finish(due[1], accuracy=0.6)

    due, search = runs_due(plan, results)
    assert search.choices == {"grpo": {"learning_rate": 2e-4}}
    trials = [spec for spec in due if spec.kind == "trial"]
    assert len(trials) == 4
    assert {spec.fields["learning_rate"] for spec in trials} == {2e-4}  # everybody's
    for spec, (accuracy, entropy, thinking) in zip(
        trials, [(0.6, 0.3, 50), (0.6, 0.4, 50), (0.3, 0.3, 20), (0.62, 0.3, 40)], strict=True
    ):
        finish(spec, accuracy=accuracy, entropy=entropy, thinking=thinking)

    due, search = runs_due(plan, results)
    assert search.choices["clip_b"]["entropy_clip_mu_low"] == 2.0  # more entropy
    assert search.choices["pear"]["pear_alpha"] == 1.0  # the shorter one was less accurate
    assert [len(record["trials"]) for record in search.record.values()] == [2, 2, 2]
    mains = [spec for spec in due if spec.kind == "main"]
    assert names(mains)[:3] == ["grpo-seed0", "clip_b-seed0", "pear-seed0"]
    assert {(spec.measurement.split, spec.steps) for spec in mains} == {("test", 10)}
    # The sweep's points at the chosen value are the main runs themselves.
    assert [n for n in names(due) if n.startswith("sweep")] == [
        "sweep-mu-1-seed0", "sweep-mu-1.5-seed0", "sweep-mu-1-seed1", "sweep-mu-1.5-seed1",
        "sweep-alpha-2-seed0", "sweep-alpha-2-seed1",
    ]  # fmt: skip
    assert len(all_runs(plan, search)) == 2 + 6 + 6 + 6
    for spec in due:
        finish(spec)
    assert runs_due(plan, results)[0] == []


def test_a_method_that_builds_on_another_takes_over_its_choice(
    plan: Plan, results: Results, finish: Callable[..., None]
) -> None:
    both = Method(
        "both", "length", {"rewards": ["pear"], "entropy_clip": "clip_b"},
        [{"entropy_clip_mu_low": 1.5}, {"entropy_clip_mu_low": 2.0}], builds_on="pear",
    )  # fmt: skip
    plan = replace(plan, methods={**plan.methods, "both": both})
    assert list(plan.only(["both"]).methods) == ["grpo", "pear", "both"]
    for spec in plan.trials("grpo", {}):
        finish(spec)
    due, search = runs_due(plan, results)
    assert not [spec for spec in due if spec.name.startswith("trial-both")]  # PEAR's search is not over
    for number, spec in enumerate(plan.trials("pear", search.choices["grpo"])):
        finish(spec, thinking=50 - 10 * number)
    due, search = runs_due(plan, results)
    assert search.choices["pear"]["pear_alpha"] == 1.0
    trials = [spec for spec in due if spec.name.startswith("trial-both")]
    assert [spec.fields["pear_alpha"] for spec in trials] == [1.0, 1.0]
    assert {spec.fields["learning_rate"] for spec in trials} == {1e-4}
    for spec in trials:
        finish(spec)
    due, search = runs_due(plan, results)
    assert search.choices["both"] == {"learning_rate": 1e-4, "pear_alpha": 1.0, "entropy_clip_mu_low": 1.5}
    assert {spec.digest for spec in due} <= {spec.digest for spec in all_runs(plan, search)}


def test_a_sweep_of_the_searched_field_does_not_wait_for_the_search(
    plan: Plan, results: Results, finish: Callable[..., None]
) -> None:
    other = Sweep("clip_b", "epsilon", [0.1, 0.2])  # of another field: it needs the choice
    plan = replace(plan, sweeps={**plan.sweeps, "other": other})
    assert not [spec for spec in runs_due(plan, results)[0] if spec.kind == "sweep"]  # the baseline's choice is for all
    for spec in plan.trials("grpo", {}):
        finish(spec)
    due, search = runs_due(plan, results)
    swept = [spec for spec in due if spec.kind == "sweep"]
    assert names(swept[:4]) == ["sweep-mu-1-seed0", "sweep-mu-1.5-seed0", "sweep-mu-1-seed1", "sweep-mu-1.5-seed1"]
    assert {spec.fields["learning_rate"] for spec in swept} == {1e-4}
    assert not [spec for spec in swept if spec.name.startswith("sweep-other")]
    for spec in swept:
        finish(spec)
    for spec in plan.trials("clip_b", search.choices["grpo"]):
        finish(spec, entropy=0.5 - spec.fields["entropy_clip_mu_low"] / 10)
    due, search = runs_due(plan, results)
    assert search.choices["clip_b"]["entropy_clip_mu_low"] == 1.5
    wanted = [spec for spec in due if spec.method == "clip_b"]
    assert {spec.name.partition("-seed")[0] for spec in wanted} == {"sweep-other-0.1", "sweep-other-0.2"}


def test_a_sweep_may_be_of_the_steps_or_of_words(plan: Plan) -> None:
    sweeps = {"stopped": Sweep("grpo", "steps", [5, 10]), "level": Sweep("clip_b", "entropy_clip", ["none", "clip_v"])}
    plan = replace(plan, sweeps=sweeps)
    runs = plan.sweep_runs("stopped", {})
    assert [(spec.name, spec.steps, "steps" in spec.fields) for spec in runs[5]] == [
        ("sweep-stopped-5-seed0", 5, False), ("sweep-stopped-5-seed1", 5, False),
    ]  # fmt: skip
    assert names(runs[10]) == ["grpo-seed0", "grpo-seed1"]  # the main runs themselves
    assert [spec.fields["entropy_clip"] for spec in plan.sweep_runs("level", {})["clip_v"]] == ["clip_v", "clip_v"]


def test_further_temperatures_make_another_run_and_no_temperature_keeps_the_digest(plan: Plan) -> None:
    (spec, *_) = plan.mains("clip_b", {})
    assert "also_at" not in spec.to_dict()["measurement"]
    warm = replace(spec, measurement=replace(spec.measurement, also_at=[0.6]))
    assert warm.digest != spec.digest
    assert RunSpec.from_dict(json.loads(json.dumps(warm.to_dict()))).digest == warm.digest
    asked = spec.measurement.questions * spec.measurement.samples
    assert warm.completions == spec.completions + asked


def test_a_run_with_other_settings_is_not_taken(plan: Plan, results: Results, finish: Callable[..., None]) -> None:
    finish(plan.starts()[0])
    other = replace(plan, test=Measurement("test", 40, 8, 128))
    with pytest.raises(ValueError, match=r"start-seed0.json was made with other settings .* delete it"):
        runs_due(other, results)


def test_a_run_is_found_under_another_name(plan: Plan, results: Results, finish: Callable[..., None]) -> None:
    """A search may choose what is a sweep's point already; it is not trained twice."""
    swept = plan.sweep_runs("mu", {})[1.5][0]
    finish(swept)
    chosen = plan.mains("clip_b", {"entropy_clip_mu_low": 1.5})[swept.seed]
    assert chosen.name != swept.name
    assert results.get(chosen.name, chosen.digest) is not None
    assert results.get("grpo-seed0", plan.mains("grpo", {})[0].digest) is None


def test_a_half_written_result_is_named(plan: Plan, results: Results) -> None:
    path = results.path("start-seed0")
    path.parent.mkdir(parents=True)
    path.write_text('{"schema": 1, "spec"')
    with pytest.raises(ValueError, match=r"start-seed0.json: .*delete it"):
        runs_due(plan, results)


def trial(accuracy: float, entropy: float = 0.3, thinking: float = 50.0) -> dict[str, float]:
    return {"accuracy": accuracy, "entropy": entropy, "thinking": thinking}


def test_the_trial_nearest_to_its_target_is_chosen() -> None:
    trials = [{**trial(0.9), "distance": 0.2}, {**trial(0.1), "distance": 0.05}, {**trial(0.5), "distance": 0.1}]
    assert choose(trials, "target", None) == choose(trials, "target", 0.8) == 1


@pytest.mark.parametrize(
    ("aim", "needed", "chosen"),
    [("accuracy", None, 1), ("entropy", 0.55, 2), ("entropy", 0.65, 1), ("length", 0.55, 2), ("length", 0.9, 1)],
)
def test_choice(aim: str, needed: float | None, chosen: int) -> None:
    trials = [trial(0.5, 0.9, 10), trial(0.7, 0.1, 60), trial(0.6, 0.5, 40)]
    assert choose(trials, aim, needed) == chosen


def test_runs_differ_by_what_decides_their_numbers_only(plan: Plan) -> None:
    spec = plan.mains("clip_b", {})[0]
    assert replace(spec, name="another", kind="sweep").digest == spec.digest
    assert replace(spec, seed=7).digest != spec.digest
    assert RunSpec.from_dict(spec.to_dict()) == spec
    assert RunSpec.from_dict(spec.to_dict()).digest == spec.digest
    # Two methods' runs of one seed draw the same random numbers when they are measured; two seeds do not.
    assert plan.mains("pear", {})[0].measurement == spec.measurement
    assert plan.mains("clip_b", {})[1].measurement != spec.measurement


def test_only_some_methods_and_other_seeds(plan: Plan) -> None:
    part = plan.only(["pear"], [5])
    assert list(part.methods) == ["grpo", "pear"]
    assert list(part.sweeps) == ["alpha"]
    assert part.seeds == [5]
    with pytest.raises(ValueError, match="unknown method 'paer'; did you mean pear"):
        plan.only(["paer"])


def test_sweeps_may_have_fewer_seeds(plan: Plan) -> None:
    fewer = replace(plan, sweep_seeds=[1])
    assert [spec.seed for spec in fewer.sweep_runs("mu", {})[1.5]] == [1]
    assert [spec.seed for spec in fewer.mains("clip_b", {})] == [0, 1]
    assert fewer.only(None, [0]).sweep_runs("mu", {})[1.5] == []
    assert plan.only(None, [5]).sweep_runs("mu", {})[1.5][0].seed == 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seeds": [0, 0]}, "seeds must be different"),
        ({"methods": {}}, "methods is empty"),
        ({"test": {"split": "validation", "questions": 2, "samples": 2, "max_tokens": 9}}, "they must differ"),
        ({"stepz": 3}, "unknown key 'stepz'; did you mean steps"),
        ({"validation": {"split": "validation"}}, "validation: missing 3 required"),
        ({"methods": {"grpo": {"title": "GRPO", "aim": "speed"}}}, "aim of 'grpo' must be one of"),
        (
            {
                "methods": {
                    "grpo": {"title": "GRPO", "aim": "accuracy", "trials": [{}]},
                    "a": {"title": "A", "aim": "length", "trials": [{}, {}]},
                    "b": {"title": "B", "aim": "length", "trials": [{}]},
                }
            },
            "gets the same number of them",
        ),
        (
            {"methods": {"grpo": {"title": "GRPO", "aim": "accuracy", "builds_on": "pear"}}},
            "'grpo' builds on 'pear', which is not a method before it",
        ),
        ({"fields": {"num_iterations": 2, "save_steps": 5}}, "save_steps must be a multiple of num_iterations = 2"),
        ({"sweeps": {"mu": {"method": "clip_x", "field": "f", "values": [1]}}}, "unknown method 'clip_x'"),
    ],
)
def test_a_mistake_in_the_plan_is_one_line(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    data = yaml.safe_load((RECIPES / "tiny.yaml").read_text(encoding="utf-8")) | change
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(data, sort_keys=False))
    with pytest.raises(ValueError, match=message) as error:
        load_plan(tmp_path / "plan.yaml")
    assert "\n" not in str(error.value)
    assert "plan.yaml" in str(error.value)


@pytest.mark.parametrize("name", ["tiny", "medium"])
def test_every_run_of_the_shipped_plans_is_a_recipe(name: str, tmp_path: Path) -> None:
    from entropy_rft.rewards import build_rewards
    from entropy_rft.tasks import load_task
    from entropy_rft.training.recipe import RecipeParser

    plan = load_plan(RECIPES / f"{name}.yaml")
    assert len(plan.methods) == 8
    assert len(plan.seeds) >= 3
    assert len({len(method.trials) for method in plan.methods.values()}) == 1
    for method, details in plan.methods.items():
        spec = plan.mains(method, {**plan.methods["grpo"].trials[0], **details.trials[0]})[0]
        file = tmp_path / f"{method}.yaml"
        file.write_text(yaml.safe_dump({**spec.fields, "output_dir": str(tmp_path / "run"), "use_cpu": True}))
        recipe = RecipeParser().parse(["--config", str(file)])
        assert recipe.training.num_iterations == 2  # with one, epsilon_high would never do anything
        options = recipe.task.task_options or {}
        task = load_task(recipe.task.task, split="test", limit=4, **options)  # type: ignore[arg-type]
        assert build_rewards(recipe.task.rewards, task.reward_funcs, recipe.task.pear)
        assert spec.completions > 0


def test_the_control_differs_from_the_study_by_its_learning_rate_and_length_alone() -> None:
    study, control = load_plan(RECIPES / "tiny.yaml"), load_plan(RECIPES / "tiny-slow.yaml")
    record = json.loads((RESULTS / "first" / "tiny" / "claims.json").read_text(encoding="utf-8"))["searches"]
    for method in control.methods:
        chosen = {**study.methods["grpo"].trials[0], **record[method]["trials"][record[method]["chosen"]]["fields"]}
        slowest = min(trial["learning_rate"] for trial in study.methods["grpo"].trials)
        ours, theirs = control.mains(method, {})[0], study.mains(method, {**chosen, "learning_rate": slowest})[0]
        assert ours.steps > theirs.steps
        assert replace(ours, steps=theirs.steps).digest == theirs.digest
    assert control.starts()[0].digest == study.starts()[0].digest
