from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from entropy_rft.difficulty import (
    DEFAULT_STRATEGIES,
    PUBLISHED_THRESHOLDS,
    Difficulty,
    DifficultyProbe,
    Strategy,
    choose,
)
from entropy_rft.difficulty.metrics import confusion_matrix, macro_f1
from entropy_rft.difficulty.optimisation import best_temperature, split_groups

EASY, NORMAL, HARD = CLASSES = (Difficulty.EASY, Difficulty.NORMAL, Difficulty.HARD)


def synthetic(counts=(60, 60, 60), width=8, distance=4.0, seed=0):
    """Three clouds in `width` dimensions, scaled and shifted as hidden states are."""
    rng = np.random.default_rng(seed)
    targets = np.repeat(np.arange(3), counts)
    states = rng.normal(size=(len(targets), width))
    states[np.arange(len(targets)), targets] += distance
    order = rng.permutation(len(targets))
    scale = np.logspace(-2, 2, width)
    return (states[order] * scale + 5 * scale).astype(np.float32), [CLASSES[i] for i in targets[order]]


@pytest.fixture(scope="module")
def fitted() -> DifficultyProbe:
    states, labels = synthetic()
    probe = DifficultyProbe(
        hidden_units=16, base_model="owner/model", thresholds=PUBLISHED_THRESHOLDS,
        strategies={**DEFAULT_STRATEGIES, EASY: Strategy(EASY, "kurz | knapp", 0.1, 0.3)}, seed=3, layer=-2,
    )  # fmt: skip
    return probe.fit(states, labels, groups=[f"q{i}" for i in range(len(labels))])


@pytest.mark.parametrize("kind", ["mlp", "linear"])
def test_learns_what_can_be_separated(kind):
    states, labels = synthetic(distance=6.0)
    probe = DifficultyProbe(kind, hidden_units=16).fit(states, labels)
    fresh, truth = synthetic(distance=6.0, seed=1)
    assert np.mean([a is b for a, b in zip(probe.predict(fresh), truth, strict=True)]) > 0.95


def test_the_mlp_learns_what_no_line_separates():
    rng = np.random.default_rng(0)
    states = rng.uniform(-1, 1, size=(600, 2)).astype(np.float32)
    labels = [HARD if x * y > 0 else EASY for x, y in states]
    right = {}
    for kind in ("mlp", "linear"):
        probe = DifficultyProbe(kind, hidden_units=32).fit(states[:400], labels[:400], learning_rate=1e-2)
        right[kind] = np.mean([a is b for a, b in zip(probe.predict(states[400:]), labels[400:], strict=True)])
    assert right["mlp"] > 0.9
    assert right["linear"] < 0.7


def test_the_formula(fitted):
    states, _ = synthetic(seed=2)
    t = {name: tensor.numpy().astype(np.float64) for name, tensor in fitted._tensors.items()}
    h = (states - t["mean"]) / t["std"]
    logits = np.maximum(h @ t["w1"].T + t["b1"], 0) @ t["w2"].T + t["b2"]
    expected = np.exp(logits / fitted.temperature)
    expected /= expected.sum(1, keepdims=True)
    proba = fitted.predict_proba(states)
    assert proba.shape == (180, 3)
    assert proba.dtype == torch.float32
    np.testing.assert_allclose(proba.numpy(), expected, atol=1e-5)


def test_a_seed_is_a_probe():
    states, labels = synthetic()
    state = torch.random.get_rng_state()
    probes = [DifficultyProbe(hidden_units=16, seed=seed).fit(states, labels, epochs=5) for seed in (0, 0, 1)]
    probas = [probe.predict_proba(states) for probe in probes]
    assert torch.equal(probas[0], probas[1])
    assert not torch.equal(probas[0], probas[2])
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_rare_class_is_not_ignored():
    states, labels = synthetic(counts=(280, 280, 14), distance=1.5)
    fresh, truth = synthetic(counts=(100, 100, 100), distance=1.5, seed=1)
    hits = {}
    for balanced in (True, False):
        probe = DifficultyProbe("linear").fit(states, labels, balanced=balanced)
        chosen = probe.predict(fresh)
        hits[balanced] = sum(a is HARD and b is HARD for a, b in zip(chosen, truth, strict=True))
        if balanced:
            matrix = confusion_matrix([c.index for c in truth], [c.index for c in chosen])
            assert macro_f1(matrix) > 0.6
    assert hits[True] > 2 * hits[False]


def test_a_constant_feature_does_no_harm():
    states, labels = synthetic(distance=6.0)
    states = np.concatenate([states, np.full((len(states), 1), 7.0, np.float32)], axis=1)
    probe = DifficultyProbe("linear").fit(states, labels)
    assert bool(probe.predict_proba(states + np.float32(1e-6)).isfinite().all())


def test_what_was_not_learned_is_no_probe():
    states, labels = synthetic()
    probe = DifficultyProbe(hidden_units=8)
    with pytest.raises(ValueError, match=r"not finite in any of \d+ epochs with learning_rate 1e\+30: take"):
        probe.fit(states, labels, learning_rate=1e30)
    for wrong in (float("inf"), float("nan"), 0.0):
        with pytest.raises(ValueError, match="learning_rate must be above 0 and finite, got"):
            probe.fit(states, labels, learning_rate=wrong)
    # The validation question is the only hard one: its loss would be 0 / 0.
    groups = [f"q{i}" for i in range(10)]
    alone = split_groups(groups, 0.1, seed=0)
    kinds = [HARD if out else (EASY, NORMAL)[i % 2] for i, out in enumerate(alone)]
    with pytest.raises(ValueError, match="the 1 validation rows are all hard, which none of the 9 training rows is"):
        probe.fit(states[:10], kinds, groups=groups, validation_fraction=0.1)
    with pytest.raises(ValueError, match="not fitted"):
        probe.predict_proba(states)


def test_no_question_is_on_both_sides_of_the_split():
    groups = [f"q{i % 40}" for i in range(200)]
    held_out = split_groups(groups, 0.25, seed=0)
    inside = {group for group, out in zip(groups, held_out, strict=True) if out}
    outside = {group for group, out in zip(groups, held_out, strict=True) if not out}
    assert len(inside) == 10
    assert not inside & outside
    assert (split_groups(groups[::-1], 0.25, seed=0)[::-1] == held_out).all()
    assert split_groups(["a", "b"], 0.01, seed=0).sum() == 1
    assert split_groups(["a", "b"], 0.99, seed=0).sum() == 1
    with pytest.raises(ValueError, match="at least 2 different questions"):
        DifficultyProbe().fit([[1.0], [2.0]], [EASY, HARD], groups=["same", "same"])


def test_the_temperature_undoes_a_known_scale():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(20_000, 3, generator=generator)
    targets = torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]
    assert best_temperature(logits * 3, targets) == pytest.approx(3, rel=0.05)
    assert best_temperature(logits / 2, targets) == pytest.approx(0.5, rel=0.05)


def test_early_stopping_keeps_the_best_epoch():
    rng = np.random.default_rng(0)
    states, labels = rng.normal(size=(60, 40)), [CLASSES[i] for i in rng.integers(3, size=60)]
    probe = DifficultyProbe(hidden_units=64).fit(states, labels, learning_rate=1e-2, patience=3)
    epochs, best = probe.metrics["fit"]["epochs"], probe.metrics["fit"]["best_epoch"]
    assert epochs == best + 3 < 100
    until_then = DifficultyProbe(hidden_units=64).fit(states, labels, learning_rate=1e-2, epochs=best)
    assert torch.equal(probe.predict_proba(states), until_then.predict_proba(states))
    assert probe.temperature > 1  # noise was learnt: the confidence must shrink


def test_saved_and_loaded_bit_for_bit(fitted, tmp_path):
    fitted.save_pretrained(tmp_path / "probe")
    assert {path.name for path in (tmp_path / "probe").iterdir()} == {"README.md", "probe.json", "probe.safetensors"}
    loaded = DifficultyProbe.from_pretrained(tmp_path / "probe")
    states, _ = synthetic(seed=5)
    assert torch.equal(loaded.predict_proba(states), fitted.predict_proba(states))
    assert loaded.to_dict() == fitted.to_dict()
    assert (loaded.base_model, loaded.layer, loaded.width, loaded.seed) == ("owner/model", -2, 8, 3)
    assert loaded.thresholds == PUBLISHED_THRESHOLDS
    assert loaded.strategies[EASY].instruction == "kurz | knapp"
    assert len(loaded.questions) == 180
    card = (tmp_path / "probe" / "README.md").read_text()
    assert "base_model: owner/model" in card
    assert "kurz \\| knapp" in card


def test_the_placement_of_its_instructions(fitted, tmp_path):
    fitted.placement = "user_end"
    fitted.save_pretrained(tmp_path)
    assert DifficultyProbe.from_pretrained(tmp_path).placement == "user_end"
    assert "at the end of the last user message" in (tmp_path / "README.md").read_text()
    data = json.loads((tmp_path / "probe.json").read_text())
    (tmp_path / "probe.json").write_text(json.dumps({**data, "placement": "user"}))
    with pytest.raises(ValueError, match="malformed: placement must be system or user_end, not 'user'; did you mean"):
        DifficultyProbe.from_pretrained(tmp_path)
    del data["placement"]  # made by an earlier version
    (tmp_path / "probe.json").write_text(json.dumps(data))
    assert DifficultyProbe.from_pretrained(tmp_path).placement == "system"
    fitted.placement = "system"


def test_how_much_to_think_is_kept_and_on_the_card(fitted, tmp_path):
    before = fitted.strategies
    fitted.strategies = {**before, EASY: Strategy(EASY, "", 0.5, 0.4, thinking_tokens=64)}
    fitted.save_pretrained(tmp_path)
    assert DifficultyProbe.from_pretrained(tmp_path).strategies[EASY].thinking_tokens == 64
    assert 'Also for easy: `{"thinking_tokens": 64}`' in (tmp_path / "README.md").read_text()
    fitted.strategies = before


def test_it_does_not_run_what_it_loads(fitted, tmp_path, monkeypatch):
    fitted.save_pretrained(tmp_path)
    import pickle

    def refuse(*args, **kwargs):
        raise AssertionError("unpickled")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    monkeypatch.setattr(torch, "load", refuse)
    DifficultyProbe.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("hidden", "message"),
    [
        (np.zeros((2, 9)), "hidden has the width 9, but this probe reads 8, the hidden states of 'owner/model'"),
        (np.full((3, 8), np.nan), "NaN or infinite values in row 0"),
        (np.array([[0.0] * 8, [np.inf] + [0.0] * 7]), "NaN or infinite values in row 1"),
        (torch.full((1, 8), 1e38, dtype=torch.float64) * 10, "NaN or infinite"),
        (np.zeros((1, 2, 8)), "shape"),
    ],
)
def test_hidden_states_it_refuses(hidden, message, fitted):
    with pytest.raises(ValueError, match=message):
        fitted.predict_proba(hidden)


def test_what_it_takes(fitted):
    states, _ = synthetic()
    one = fitted.predict_proba(states[0])
    assert one.shape == (1, 3)
    assert torch.allclose(one, fitted.predict_proba(states)[:1], atol=1e-6)
    assert fitted.predict_proba(torch.from_numpy(states).to(torch.bfloat16)).dtype == torch.float32
    assert fitted.predict_proba(np.zeros((0, 8))).shape == (0, 3)


def test_another_base_model_is_refused_unless_forced(fitted, tmp_path, recwarn):
    fitted.save_pretrained(tmp_path)
    assert DifficultyProbe.from_pretrained(tmp_path, base_model="owner/model").width == 8
    with pytest.raises(ValueError, match="made for the base model 'owner/model', not for 'owner/other'"):
        DifficultyProbe.from_pretrained(tmp_path, base_model="owner/other")
    assert not recwarn
    with pytest.warns(UserWarning, match="not for 'owner/other'"):
        DifficultyProbe.from_pretrained(tmp_path, base_model="owner/other", force=True)


def test_a_model_is_recognised_by_its_weights(tmp_path, random_model_dir):
    from transformers import AutoModelForCausalLM

    from entropy_rft.difficulty.states import fingerprint

    model = AutoModelForCausalLM.from_pretrained(random_model_dir)
    states, labels = synthetic()
    probe = DifficultyProbe("linear", base_model="a/name", fingerprint=fingerprint(model)).fit(states, labels, epochs=1)
    probe.save_pretrained(tmp_path)
    DifficultyProbe.from_pretrained(tmp_path, base_model=model)
    with torch.no_grad():
        model.model.norm.weight += 0.01  # trained a little further
    with pytest.raises(ValueError, match="made for the base model 'a/name'"):
        DifficultyProbe.from_pretrained(tmp_path, base_model=model)


def test_the_same_directory_is_the_same_model(fitted, tmp_path, monkeypatch):
    from entropy_rft.difficulty.states import same_model

    (tmp_path / "m").mkdir()
    monkeypatch.chdir(tmp_path)
    assert same_model("m", str(tmp_path / "m"))
    assert same_model("./m/", "m")
    assert not same_model("m", "n")


def broken(name, change):
    def apply(directory):
        path = directory / name
        if change is None:
            path.unlink()
        else:
            path.write_bytes(change(path.read_bytes()))

    return apply


def edited(**changes):
    return broken("probe.json", lambda data: json.dumps({**json.loads(data), **changes}).encode())


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (broken("probe.json", None), "has no probe.json"),
        (broken("probe.json", lambda data: data[:-9]), "cannot be read"),
        (broken("probe.json", lambda data: b"[]"), "is of schema 'list'"),
        (edited(schema=9), "is of schema 9, not 1"),
        (edited(kind="tree"), "kind must be mlp or linear, not 'tree'"),
        (edited(temperature=0), "out of range"),
        (edited(width=9), "mean has the shape (8,), expected (9,)"),
        (edited(hidden_units=17), "expected (17"),
        (edited(classes=["hard", "normal", "easy"]), "out of range"),
        (edited(thresholds={"accuracy_normal": 2, "entropy_normal": 0, "accuracy_hard": 0}), "accuracy_normal"),
        (edited(strategies={"easy": {"temperature": -1}}), "temperature"),
        (broken("probe.json", lambda d: json.dumps({k: v for k, v in json.loads(d).items() if k != "layer"}).encode()),
         "has no field 'layer'"),
        (edited(layer="x"), "layer must be a whole number, not 'x'"),
        (edited(layer=True), "layer must be a whole number, not True"),
        (edited(questions="abc"), "questions must be a list of texts, not 'abc'"),
        (edited(questions=[7]), "questions must contain only text"),
        (edited(base_model=7), "base_model must be text or null, not 7"),
        (edited(seed=None), "seed must be a whole number, not None"),
        (broken("probe.safetensors", None), "no such file"),
        (broken("probe.safetensors", lambda data: data[:-4]), "cannot be read"),
        (broken("probe.safetensors", lambda data: b"\x80\x04."), "cannot be read"),
        (broken("probe.safetensors", lambda data: data[:-4] + np.float32("nan").tobytes()), "not finite float32"),
    ],
)  # fmt: skip
def test_corrupted_files_are_one_line(damage, message, fitted, tmp_path):
    fitted.save_pretrained(tmp_path)
    damage(tmp_path)
    with pytest.raises(ValueError, match=r"^probe '") as caught:
        DifficultyProbe.from_pretrained(tmp_path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DifficultyProbe("tree"), "kind"),
        (lambda: DifficultyProbe(hidden_units=0), "hidden_units"),
        (lambda: DifficultyProbe(strategies={}), "strategies has none for easy, normal, hard"),
        (lambda: DifficultyProbe().predict_proba([[1.0]]), "not fitted"),
        (lambda: DifficultyProbe().save_pretrained("nowhere"), "not fitted"),
        (lambda: DifficultyProbe().fit([[1.0], [float("nan")]], [EASY, HARD]), "NaN or infinite values in row 1"),
        (lambda: DifficultyProbe().fit([[1.0], [2.0]], [EASY]), "same length"),
        (lambda: DifficultyProbe().fit([[1.0], [2.0]], [EASY, HARD], validation_fraction=0), "fraction"),
        (lambda: DifficultyProbe().fit([[1.0], [2.0]], [EASY, HARD], patience=0), "patience"),
    ],
)
def test_mistakes(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_choosing():
    proba = [[0.5, 0.3, 0.2], [0.1, 0.2, 0.7], [0.2, 0.6, 0.2]]
    assert choose(proba) == [EASY, HARD, NORMAL]
    assert choose(proba, 0.6) == [NORMAL, HARD, NORMAL]
    assert choose([0.0, 0.0, 1.0], 1.0) is HARD
    assert choose(torch.tensor(proba), 0.5) == [EASY, HARD, NORMAL]
    for wrong, message in (([0.5, 0.5], "shape"), ([np.nan, 0, 1], "probabilities"), ([-1, 1, 1], "probabilities")):
        with pytest.raises(ValueError, match=message):
            choose(wrong)
    with pytest.raises(ValueError, match="min_confidence"):
        choose(proba, 1.1)
