from __future__ import annotations

import numpy as np
import pytest

from entropy_rft.difficulty import PUBLISHED_THRESHOLDS, Difficulty, DifficultyProbe, train_probe
from entropy_rft.difficulty.fitting import BASELINES, baselines_of, labels_of
from entropy_rft.difficulty.metrics import classification_report, macro_f1
from entropy_rft.difficulty.traces import Traces

SETTINGS = {"model": "owner/model", "fingerprint": "f", "layer": -1, "width": 6}


@pytest.fixture
def traces() -> Traces:
    """Three kinds of questions that the hidden state tells apart; hard ones are a little longer."""
    rng = np.random.default_rng(0)
    kind = rng.permutation(np.repeat([0, 1, 2], 100))
    accuracy = rng.binomial(10, np.array([0.97, 0.98, 0.2])[kind]) / 10
    entropy = np.abs(rng.normal(np.array([0.6, 0.2, 0.7])[kind], 0.03))
    hidden = rng.normal(size=(300, 6)) + 3 * np.eye(6)[kind]
    rows = [
        {"id": f"q{i}", "accuracy": a, "entropy": h, "prompt_tokens": int(30 + 2 * k + rng.integers(6)), "level": None}
        for i, (k, a, h) in enumerate(zip(kind, accuracy, entropy, strict=True))
    ]
    return Traces([SETTINGS], rows, hidden.astype(np.float32))


def test_from_traces_to_a_probe(traces, tmp_path):
    probe = train_probe(traces)
    assert 0.25 < probe.thresholds.entropy_normal < 0.55
    metrics = probe.metrics
    assert metrics["test"]["questions"] == 60
    assert metrics["test"]["macro_f1"] > 0.85
    baselines = {name: report["macro_f1"] for name, report in metrics["baselines"].items()}
    assert baselines["majority"] < 0.25
    assert baselines["majority"] < baselines["prompt_length"] < metrics["test"]["macro_f1"]
    assert baselines["pass_rate"] < metrics["test"]["macro_f1"]
    assert sum(metrics["labels"].values()) == 240
    assert metrics["calibration"]["validation_separation"] > 0.7
    assert (probe.base_model, probe.fingerprint, probe.layer) == ("owner/model", "f", -1)
    assert len(probe.questions) == 240
    probe.save_pretrained(tmp_path)
    assert DifficultyProbe.from_pretrained(tmp_path).metrics == metrics
    card = (tmp_path / "README.md").read_text()
    assert f"| this probe | {metrics['test']['accuracy']:.3f} | {metrics['test']['macro_f1']:.3f} |" in card
    assert f"| prompt length | {metrics['baselines']['prompt_length']['accuracy']:.3f} |" in card
    assert "| label \\ said | easy | normal | hard |" in card


def test_baselines_are_fitted_to_the_probes_own_questions(traces):
    probe = train_probe(traces)
    own = np.isin(traces.ids, probe.questions)
    found = baselines_of(probe, traces)
    assert found.keys() == BASELINES.keys()
    for name, baseline in found.items():
        assert set(baseline.questions) == set(probe.questions)
        unseen = traces.take(~own).column(BASELINES[name])[:, None]
        report = classification_report(baseline.predict_proba(unseen), labels_of(traces.take(~own), probe.thresholds))
        assert report == probe.metrics["baselines"][name]
    with pytest.raises(ValueError, match="none of these traces' questions"):
        baselines_of(probe, traces.take(~own))
    probe.thresholds = None
    with pytest.raises(ValueError, match="no thresholds"):
        baselines_of(probe, traces)


def test_baselines_are_fitted_as_the_probe_was(traces, tmp_path):
    probe = train_probe(traces, epochs=3, learning_rate=0.02)
    probe.save_pretrained(tmp_path)
    unseen = traces.take(~traces.among(probe.questions))
    truth = labels_of(unseen, probe.thresholds)
    loaded = DifficultyProbe.from_pretrained(tmp_path)
    for name, baseline in baselines_of(loaded, traces).items():
        report = classification_report(baseline.predict_proba(unseen.column(BASELINES[name])[:, None]), truth)
        assert report == probe.metrics["baselines"][name]
    for setting in ("max_epochs", "learning_rate"):  # as older probes
        del loaded.metrics["fit"][setting]
    assert baselines_of(loaded, traces)["pass_rate"].metrics["fit"]["max_epochs"] == 100


def test_baselines_are_of_the_probes_model(traces):
    probe = train_probe(traces, thresholds=PUBLISHED_THRESHOLDS, epochs=2)
    others = Traces([{**SETTINGS, "fingerprint": "other", "model": "owner/other"}], traces.rows, traces.hidden)
    with pytest.raises(ValueError, match="made for the base model 'owner/model', the traces are of 'owner/other' with"):
        baselines_of(probe, others)
    assert baselines_of(probe, others, force=True).keys() == BASELINES.keys()


def test_fingerprints_of_two_versions_are_not_called_other_weights(traces):
    probe = train_probe(traces, thresholds=PUBLISHED_THRESHOLDS, epochs=2)
    old, new = "0" * 16, "0" * 32
    for ours, theirs, older in ((old, new, "the probe was"), (new, old, "the traces were")):
        probe.fingerprint = ours
        others = Traces([{**SETTINGS, "fingerprint": theirs}], traces.rows, traces.hidden)
        with pytest.raises(ValueError, match=f"{older} made by an earlier version.*make both again"):
            baselines_of(probe, others)


def test_the_test_questions_are_seen_by_nothing(traces):
    """Spoiling the questions set aside changes neither thresholds nor weights."""
    probe = train_probe(traces)
    unseen = [i for i, row in enumerate(traces.rows) if row["id"] not in probe.questions]
    assert len(unseen) == 60
    for i in unseen:
        traces.rows[i] |= {"accuracy": 0.5, "entropy": 3.0}
    traces.hidden[unseen] = 100.0
    other = train_probe(traces)
    assert other.thresholds == probe.thresholds
    assert other.predict_proba(np.ones((1, 6))).tolist() == probe.predict_proba(np.ones((1, 6))).tolist()


def test_given_thresholds_are_taken(traces):
    probe = train_probe(traces, thresholds=PUBLISHED_THRESHOLDS, kind="linear")
    assert probe.thresholds is PUBLISHED_THRESHOLDS
    assert "calibration" not in probe.metrics
    assert macro_f1(np.asarray(probe.metrics["test"]["confusion"])) == probe.metrics["test"]["macro_f1"]


def test_one_class_is_refused(traces):
    wrong = Traces(traces.settings, [{**row, "accuracy": 0.0} for row in traces.rows], traces.hidden)
    with pytest.raises(ValueError, match="all 240 questions are hard by Thresholds"):
        train_probe(wrong, thresholds=PUBLISHED_THRESHOLDS)


def test_too_few_questions(traces):
    with pytest.raises(ValueError, match="at least 10 different questions, the traces have 5"):
        train_probe(traces.take(np.arange(300) < 5))


def test_the_strategies_travel_along(traces):
    probe = train_probe(traces, thresholds=PUBLISHED_THRESHOLDS, epochs=1)
    assert probe.strategies[Difficulty.HARD].max_tokens_fraction == 0.5
