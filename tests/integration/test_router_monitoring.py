"""The dashboard and the alerts of recipes/router/monitoring: what Grafana and Prometheus make of them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_router_recipes import metric_names, one

MONITORING = Path(__file__).parents[2] / "recipes" / "router" / "monitoring"
ALERTS = MONITORING / "alerts.yaml"
DASHBOARD: dict[str, Any] = json.loads((MONITORING / "dashboard.json").read_text(encoding="utf-8"))
RULES: list[dict[str, Any]] = [
    rule for group in yaml.safe_load(ALERTS.read_text(encoding="utf-8"))["groups"] for rule in group["rules"]
]
# Labels of our metrics (entropy_rft/router/metrics.py), and those that Prometheus adds when it scrapes.
LABELS = {"arm", "backend", "difficulty", "digest", "endpoint", "field", "kind", "le", "reason", "result", "status"}
SCRAPED = {"instance", "job", "namespace"}
GRAFANAS = {"$__rate_interval": "1m", "$__range": "1h", "$instance": ".*"}


def panels() -> list[dict[str, Any]]:
    return [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def expressions() -> Iterator[tuple[str, str]]:
    """Where each one stands, and its text; Grafana's variables are replaced as Grafana does it."""
    for rule in RULES:
        yield rule["alert"], rule["expr"]
    for panel in panels():
        for target in panel["targets"]:
            text = target["expr"]
            for variable, value in GRAFANAS.items():
                text = text.replace(variable, value)
            yield f"{panel['title']} {target['refId']}", text


EXPRESSIONS = pytest.mark.parametrize(("where", "text"), [pytest.param(*each, id=each[0]) for each in expressions()])


@EXPRESSIONS
def test_an_expression_names_metrics_and_labels_that_exist(where: str, text: str) -> None:
    exported = metric_names()
    named = set(re.findall(r"\b(?:entropy_rft|process|python)_\w+", text))
    assert named
    assert named <= exported
    used = {label for each in re.findall(r"\{([^}]*)\}", text) for label in re.findall(r"(\w+)\s*[=!]", each)}
    used |= {label.strip() for each in re.findall(r"\b(?:by|on) \(([^)]*)\)", text) for label in each.split(",")}
    assert used <= LABELS | SCRAPED


@EXPRESSIONS
def test_an_expression_is_promql(where: str, text: str) -> None:
    promql = pytest.importorskip("promql_parser", reason="promql-parser is not installed")
    promql.parse(text)  # else a ValueError


def test_a_wrong_expression_is_found() -> None:
    promql = pytest.importorskip("promql_parser", reason="promql-parser is not installed")
    for text in ("sum(rate(entropy_rft_requests_total[5m])", "rate(entropy_rft_requests_total)", "sum by (a (b)"):
        with pytest.raises(ValueError, match=r"."):
            promql.parse(text)


def test_every_metric_of_the_router_is_on_the_dashboard() -> None:
    """But for the time of its start, which the alerts use."""
    shown = json.dumps(DASHBOARD)
    families = {re.sub(r"_(bucket|sum|count|created)$", "", name) for name in metric_names()}
    ours = {name for name in families if name.startswith("entropy_rft_")}
    missing = {name for name in ours if name not in shown}
    assert missing == {"entropy_rft_start_time_seconds"}


def test_the_dashboard_is_one_that_grafana_reads() -> None:
    """Read and written by Grafana's own types, every field comes back as it was: none is unknown."""
    if sys.version_info < (3, 11):
        pytest.skip("grafana-foundation-sdk needs Python 3.11")
    pytest.importorskip("grafana_foundation_sdk", reason="grafana-foundation-sdk is not installed")
    from grafana_foundation_sdk.cog.encoder import JSONEncoder
    from grafana_foundation_sdk.cog.plugins import register_default_plugins
    from grafana_foundation_sdk.models.dashboard import Dashboard

    register_default_plugins()
    written = json.loads(JSONEncoder(sort_keys=True, indent=2).encode(Dashboard.from_json(DASHBOARD)))
    assert lost(DASHBOARD, written) == []
    odd = json.loads(json.dumps(DASHBOARD))
    odd["panels"][1]["fieldConfig"]["defaults"]["colour"] = "red"
    assert lost(odd, json.loads(JSONEncoder().encode(Dashboard.from_json(odd)))) == [
        "panels.1.fieldConfig.defaults.colour"
    ]


def lost(given: Any, written: Any, path: str = "") -> list[str]:
    """Where `written` does not hold what was given."""
    if isinstance(given, dict) and isinstance(written, dict):
        return [
            place
            for key, value in given.items()
            for place in (lost(value, written[key], f"{path}.{key}") if key in written else [f"{path}.{key}"[1:]])
        ]
    if isinstance(given, list) and isinstance(written, list) and len(given) == len(written):
        return [
            place for i, (a, b) in enumerate(zip(given, written, strict=True)) for place in lost(a, b, f"{path}.{i}")
        ]
    return [] if given == written else [path[1:]]


def test_panels_have_a_place_and_a_title_each() -> None:
    identities = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(identities)) == len(identities)
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells
        assert panel["title"]
    for panel in panels():
        assert panel["description"].endswith("."), panel["title"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    assert {variable["name"] for variable in DASHBOARD["templating"]["list"]} == {"datasource", "instance"}


def test_kubernetes_has_the_same_alerts() -> None:
    assert one("PrometheusRule")["spec"]["groups"] == yaml.safe_load(ALERTS.read_text(encoding="utf-8"))["groups"]


def test_alerts_have_what_a_person_needs() -> None:
    assert len({rule["alert"] for rule in RULES}) == len(RULES) >= 8
    for rule in RULES:
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"]["summary"].endswith(".")


# ---- promtool: with series that make an alert fire, and with those of a router that is well

BACKEND = '{backend="a", instance="r"}'
WELL = {
    'entropy_rft_build_info{instance="r"}': "1x60",
    'entropy_rft_ready{instance="r"}': "1x60",
    'entropy_rft_feature_up{instance="r"}': "1x60",
    'entropy_rft_start_time_seconds{instance="r"}': "1000x60",
    f"entropy_rft_backend_up{BACKEND}": "1x60",
    f"entropy_rft_backend_outstanding{BACKEND}": "10x60",
    f"entropy_rft_backend_limit{BACKEND}": "100x60",
    f"entropy_rft_backend_failures_total{BACKEND}": "0+0x60",
    f"entropy_rft_backend_requests_total{BACKEND}": "0+600x60",
    'entropy_rft_requests_total{instance="r", status="200"}': "0+600x60",
    'entropy_rft_requests_total{instance="r", status="503"}': "0+0x60",
    'entropy_rft_fallbacks_total{instance="r", reason="feature_timeout"}': "0+0x60",
    'entropy_rft_fallbacks_total{instance="r", reason="image"}': "0+300x60",
    'entropy_rft_routing_seconds_bucket{instance="r", le="0.1"}': "0+600x60",
    'entropy_rft_routing_seconds_bucket{instance="r", le="0.5"}': "0+600x60",
    'entropy_rft_routing_seconds_bucket{instance="r", le="+Inf"}': "0+600x60",
}
# What is otherwise for each alert; None: there is no such series.
ILL: dict[str, dict[str, str | None]] = {
    "RouterNotScraped": {'entropy_rft_build_info{instance="r"}': None},
    "RouterNotReady": {'entropy_rft_ready{instance="r"}': "0x60"},
    "RouterBackendDown": {f"entropy_rft_backend_up{BACKEND}": "0x60"},
    "RouterBackendFailing": {f"entropy_rft_backend_failures_total{BACKEND}": "0+60x60"},
    "RouterBackendsFull": {f"entropy_rft_backend_outstanding{BACKEND}": "95x60"},
    "RouterFailing": {'entropy_rft_requests_total{instance="r", status="503"}': "0+60x60"},
    "RouterFeaturesDown": {'entropy_rft_feature_up{instance="r"}': "0x60"},
    "RouterFeaturesLate": {'entropy_rft_fallbacks_total{instance="r", reason="feature_timeout"}': "0+60x60"},
    "RouterSlow": {'entropy_rft_routing_seconds_bucket{instance="r", le="0.1"}': "0+300x60"},
    "RouterRestarts": {'entropy_rft_start_time_seconds{instance="r"}': "1000+100x60"},
}
WHERE = shutil.which("promtool")
promtool = pytest.mark.skipif(
    WHERE is None, reason="promtool is not installed (Debian has it in the package prometheus)"
)


@promtool
def test_promtool_reads_the_rules() -> None:
    result = subprocess.run([str(WHERE), "check", "rules", ALERTS], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"{len(RULES)} rules found" in result.stdout


@promtool
@pytest.mark.parametrize("place", ["kubernetes", "one_engine/kubernetes"])
def test_promtool_reads_the_rules_of_the_clusters(place: str, tmp_path: Path) -> None:
    text = (MONITORING.parent / place / "monitoring.yaml").read_text(encoding="utf-8")
    (spec,) = [each["spec"] for each in yaml.safe_load_all(text) if each["kind"] == "PrometheusRule"]
    file = tmp_path / "rules.yaml"
    file.write_text(yaml.safe_dump(spec), encoding="utf-8")
    result = subprocess.run([str(WHERE), "check", "rules", file], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stdout + result.stderr
    count = sum(len(group["rules"]) for group in spec["groups"])
    assert count > 0
    assert f"{count} rules found" in result.stdout


@promtool
def test_each_alert_fires_when_it_should_and_alone(tmp_path: Path) -> None:
    """By promtool's own evaluation of the rules, minute by minute."""
    assert ILL.keys() == {rule["alert"] for rule in RULES}
    tests = []
    for firing, changes in {"": {}, **ILL}.items():
        series = {name: values for name, values in {**WELL, **changes}.items() if values is not None}
        tests.append(
            {
                "name": firing,
                "interval": "1m",
                "input_series": [{"series": name, "values": values} for name, values in series.items()],
                "promql_expr_test": [
                    {
                        "expr": 'count by (alertname) (ALERTS{alertstate="firing"})',
                        "eval_time": "50m",
                        "exp_samples": [{"labels": f'{{alertname="{firing}"}}', "value": 1}] if firing else [],
                    }
                ],
            }
        )
    file = tmp_path / "tests.yaml"
    content = {"rule_files": [str(ALERTS)], "evaluation_interval": "1m", "tests": tests}
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    result = subprocess.run([str(WHERE), "test", "rules", file], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stdout + result.stderr
