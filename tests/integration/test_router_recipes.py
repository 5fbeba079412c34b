"""The router's recipes as a cluster and a GPU machine would take them, as far as that shows without either."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry

from entropy_rft.router.metrics import Metrics
from entropy_rft.router.settings import RouterSettings, load_settings

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "recipes" / "router"
CLUSTER = RECIPES / "kubernetes"
NAME = "entropy-rft-router"


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("ENTROPY_RFT_ROUTER_"):
            monkeypatch.delenv(name)


# ---- router.yaml


def commented(text: str) -> str:
    """The file with every ``#name: value`` line taken in."""
    return re.sub(r"^(\s*)#(\w+:)", r"\1\2", text, flags=re.MULTILINE)


def keys(model: Any, prefix: str = "") -> Iterator[str]:
    for name, value in model.model_dump().items():
        if isinstance(value, dict) and name != "strategies":
            yield from (f"{prefix}{name}.{inner}" for inner in value)
        else:
            yield prefix + name


def test_router_yaml_is_right_as_it_stands() -> None:
    settings = load_settings(RECIPES / "router.yaml")
    assert settings.features.kind == "vllm_pooling"
    assert [backend.name for backend in settings.backends] == ["vllm-0"]


def test_router_yaml_names_every_setting_and_shows_the_defaults(tmp_path: Path) -> None:
    text = (RECIPES / "router.yaml").read_text(encoding="utf-8")
    whole = tmp_path / "router.yaml"
    whole.write_text(commented(text), encoding="utf-8")
    # Taking in the commented lines changes nothing: they are the defaults.
    assert load_settings(whole).model_dump() == load_settings(RECIPES / "router.yaml").model_dump()
    shown = yaml.safe_load(whole.read_text(encoding="utf-8"))
    names = {
        f"{part}.{inner}" if isinstance(value, dict) else part
        for part, value in shown.items()
        for inner in (value if isinstance(value, dict) else [None])
    }
    assert set(keys(RouterSettings())) == names
    backend = shown["backends"][0]
    assert set(backend) == set(load_settings(whole).backends[0].model_dump())


# ---- vllm.sh

FAKE_VLLM = """#!{python}
import http.server, json, os, signal, sys
arguments = sys.argv[1:]
port = int(arguments[arguments.index("--port") + 1])
with open(os.environ["CALLS"], "a") as calls:
    calls.write(json.dumps([os.environ["CUDA_VISIBLE_DEVICES"], *arguments, os.getpid()]) + "\\n")
if os.environ.get("DIES") == ("pooling" if "pooling" in arguments else "generate"):
    sys.exit(3)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
    def log_message(self, *arguments):
        pass
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
http.server.HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""
FAKE_ROUTER = """#!{python}
import json, os, signal, sys
if "--check" in sys.argv:
    sys.exit(int(os.environ.get("CHECK", 0)))
settings = {{name: value for name, value in os.environ.items() if name.startswith("ENTROPY_RFT_ROUTER_")}}
with open(os.environ["CALLS"], "a") as calls:
    calls.write(json.dumps([settings, *sys.argv[1:]]) + "\\n")
print("listening", flush=True)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
while True:
    signal.pause()
"""


class Script:
    """``vllm.sh`` with programs in place of vLLM and the router that tell what they were given."""

    def __init__(self, directory: Path, ports: list[int], **environment: str) -> None:
        self.calls_file = directory / "calls"
        for name, text in (("vllm", FAKE_VLLM), ("entropy-rft", FAKE_ROUTER)):
            program = directory / name
            program.write_text(text.format(python=sys.executable), encoding="utf-8")
            program.chmod(program.stat().st_mode | stat.S_IXUSR)
        probe = directory / "probe"
        probe.mkdir()
        (probe / "probe.json").write_text("{}", encoding="utf-8")
        self.environment = {
            **os.environ,
            "MODEL": "some/model",
            "PROBE": str(probe),
            "CALLS": str(self.calls_file),
            "VLLM": str(directory / "vllm"),
            "ROUTER": str(directory / "entropy-rft"),
            "GENERATE_PORT": str(ports[0]),
            "POOL_PORT": str(ports[1]),
            "START_S": "60",
            **environment,
        }

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [RECIPES / "vllm.sh", *arguments],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def calls(self) -> list[list[Any]]:
        if not self.calls_file.exists():
            return []
        return [json.loads(line) for line in self.calls_file.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def ports() -> list[int]:
    import socket

    with socket.socket() as one, socket.socket() as other:
        for each in (one, other):
            each.bind(("127.0.0.1", 0))
        return [one.getsockname()[1], other.getsockname()[1]]


needs_bash = pytest.mark.skipif(shutil.which("bash") is None, reason="vllm.sh is a bash script")


def left_over(process: subprocess.Popen[str]) -> bool:
    """Whether anything of the script's process group is alive."""
    try:
        os.killpg(process.pid, 0)
    except ProcessLookupError:
        return False
    os.killpg(process.pid, signal.SIGKILL)
    return True


@needs_bash
@pytest.mark.integration
def test_vllm_script_starts_both_servers_then_the_router_and_ends_all(tmp_path: Path, ports: list[int]) -> None:
    script = Script(tmp_path, ports, GENERATE_GPUS="0,1", POOL_GPUS="2", GENERATE_ARGS="--tensor-parallel-size 2")
    process = script.start("--log_requests", "true")
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "listening\n"
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    finally:
        alive = left_over(process)
    assert process.returncode == 143, errors
    assert not alive
    generation, pooling, router = script.calls()
    assert generation[:3] == ["0,1", "serve", "some/model"]
    assert generation[-3:-1] == ["--tensor-parallel-size", "2"]
    assert pooling[:5] == ["2", "serve", "some/model", "--runner", "pooling"]
    settings, *arguments = router
    assert arguments == ["serve", "--config", str(RECIPES / "router.yaml"), "--log_requests", "true"]
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        loaded = load_settings(RECIPES / "router.yaml")
    assert loaded.probe == script.environment["PROBE"]
    assert [backend.url for backend in loaded.backends] == [f"http://127.0.0.1:{ports[0]}"]
    assert loaded.features.url == f"http://127.0.0.1:{ports[1]}"


@needs_bash
@pytest.mark.integration
@pytest.mark.parametrize("server", [0, 1], ids=["generation", "pooling"])
def test_vllm_script_ends_when_a_server_does(server: int, tmp_path: Path, ports: list[int]) -> None:
    script = Script(tmp_path, ports)
    process = script.start()
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "listening\n"
        os.kill(script.calls()[server][-1], signal.SIGKILL)
        _, errors = process.communicate(timeout=60)
    finally:
        alive = left_over(process)
    assert process.returncode == 1, errors
    assert errors.splitlines()[-1] == "== a vLLM server ended; stopping the router"
    assert not alive


@needs_bash
@pytest.mark.integration
@pytest.mark.parametrize(
    ("environment", "code", "message", "calls"),
    [
        ({"DIES": "generate"}, 1, "the generation server ended before it was ready", 1),
        ({"DIES": "pooling"}, 1, "the pooling server ended before it was ready", 2),
        ({"PROBE": "/nowhere"}, 1, "PROBE=/nowhere holds no probe.json", 0),
        ({"MODEL": ""}, 1, "name the model", 0),
        ({"CHECK": "2"}, 2, "", 0),
    ],
)
def test_vllm_script_says_what_failed_and_leaves_nothing(
    tmp_path: Path, ports: list[int], environment: dict[str, str], code: int, message: str, calls: int
) -> None:
    script = Script(tmp_path, ports, **environment)
    process = script.start()
    try:
        _, errors = process.communicate(timeout=60)
    finally:
        alive = left_over(process)
    assert process.returncode == code, errors
    assert message in errors
    assert not alive
    assert len(script.calls()) == calls


# ---- Containerfile


def test_container_runs_as_a_number_that_is_not_root_and_is_checked() -> None:
    text = (RECIPES / "Containerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    stages = re.findall(r"^FROM \S+ AS (\S+)$", "\n".join(lines), re.MULTILINE)
    assert stages[-1] == "router"  # what is built by default
    (user,) = re.findall(r"^USER (\d+):(\d+)$", "\n".join(lines), re.MULTILINE)
    assert int(user[0]) > 0
    assert f"--uid {user[0]}" in text
    assert lines.index(next(line for line in lines if line.startswith("USER"))) < lines.index(
        next(line for line in lines if line.startswith("ENTRYPOINT"))
    )
    (check,) = re.findall(r"CMD (\[.*\])", text)
    program, flag, code = json.loads(check)
    assert (program, flag) == ("python", "-c")
    compile(code, "healthcheck", "exec")
    (entry,) = re.findall(r"ENTRYPOINT (\[.*\])", text)
    assert json.loads(entry) == ["entropy-rft", "serve"]
    for source in re.findall(r"^COPY ((?:[\w./]+ )+)\S+$", "\n".join(lines), re.MULTILINE):
        for name in source.split():
            assert (ROOT / name).exists()
    # Its environment sets what the router reads, and nothing that it would refuse.
    for name, value in re.findall(r"(ENTROPY_RFT_ROUTER_\w+)=(\S+)", text):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(name, value)
            assert load_settings().host == "0.0.0.0"


# ---- Kubernetes


def documents() -> list[dict[str, Any]]:
    kustomization = yaml.safe_load((CLUSTER / "kustomization.yaml").read_text(encoding="utf-8"))
    files = [*kustomization["resources"], "secret.example.yaml"]
    return [document for file in files for document in yaml.safe_load_all((CLUSTER / file).read_text(encoding="utf-8"))]


def one(kind: str, name: str = NAME) -> dict[str, Any]:
    (found,) = [d for d in documents() if d["kind"] == kind and d["metadata"]["name"] == name]
    return found


def pod(kind: str = "Deployment", name: str = NAME) -> dict[str, Any]:
    return one(kind, name)["spec"]["template"]["spec"]


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> RouterSettings:
    return load_settings(CLUSTER / "router.yaml")


def test_every_file_of_the_cluster_is_used() -> None:
    kustomization = yaml.safe_load((CLUSTER / "kustomization.yaml").read_text(encoding="utf-8"))
    used = {*kustomization["resources"], *kustomization["configMapGenerator"][0]["files"]}
    assert {file.name for file in CLUSTER.iterdir()} - used == {
        "kustomization.yaml",
        "secret.example.yaml",
        "prometheus-adapter.values.yaml",
    }


def test_labels_select_the_pods() -> None:
    for workload in documents():
        if workload["kind"] in ("Deployment", "StatefulSet"):
            labels = workload["spec"]["template"]["metadata"]["labels"]
            assert workload["spec"]["selector"]["matchLabels"].items() <= labels.items()
    labels = one("Deployment")["spec"]["template"]["metadata"]["labels"]
    assert one("Service")["spec"]["selector"].items() <= labels.items()
    assert one("PodDisruptionBudget")["spec"]["selector"]["matchLabels"].items() <= labels.items()
    (spread,) = pod()["topologySpreadConstraints"]
    assert spread["labelSelector"]["matchLabels"].items() <= labels.items()
    service = one("Service")["metadata"]["labels"]
    assert one("ServiceMonitor")["spec"]["selector"]["matchLabels"].items() <= service.items()
    for name, kind in (("vllm-generation", "StatefulSet"), ("vllm-pooling", "Deployment")):
        of_server = one(kind, name)["spec"]["template"]["metadata"]["labels"]
        assert one("Service", name)["spec"]["selector"].items() <= of_server.items()
    assert one("StatefulSet", "vllm-generation")["spec"]["serviceName"] == "vllm-generation"


def test_ports_lead_to_the_router(settings: RouterSettings) -> None:
    (container,) = pod()["containers"]
    (port,) = container["ports"]
    assert port["containerPort"] == settings.port
    assert settings.host == "0.0.0.0"
    for probe, path in (("startupProbe", "/health"), ("livenessProbe", "/health"), ("readinessProbe", "/ready")):
        assert container[probe]["httpGet"] == {"path": path, "port": port["name"]}
    (service,) = one("Service")["spec"]["ports"]
    assert service["targetPort"] == port["name"]
    (endpoint,) = one("ServiceMonitor")["spec"]["endpoints"]
    assert (endpoint["port"], endpoint["path"]) == (service["name"], "/metrics")
    # Without a key Prometheus gets in only where the metrics are public.
    assert settings.auth.public_metrics or "authorization" in endpoint


def test_backends_are_the_servers_in_vllm_yaml(settings: RouterSettings) -> None:
    generation = one("StatefulSet", "vllm-generation")
    (port,) = one("Service", "vllm-generation")["spec"]["ports"]
    assert one("Service", "vllm-generation")["spec"]["clusterIP"] in (None, "None")
    assert [backend.url for backend in settings.backends] == [
        f"http://vllm-generation-{i}.vllm-generation:{port['port']}" for i in range(generation["spec"]["replicas"])
    ]
    (pooling_port,) = one("Service", "vllm-pooling")["spec"]["ports"]
    assert settings.features.url == f"http://vllm-pooling:{pooling_port['port']}"
    models = set()
    for kind, name in (("StatefulSet", "vllm-generation"), ("Deployment", "vllm-pooling")):
        (container,) = pod(kind, name)["containers"]
        models.add(container["args"][container["args"].index("--model") + 1])
        assert ("pooling" in container["args"]) == (name == "vllm-pooling")
        (listening,) = container["ports"]
        assert container["args"][container["args"].index("--port") + 1] == str(listening["containerPort"])
        assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
        if name == "vllm-generation":
            sequences = int(container["args"][container["args"].index("--max-num-seqs") + 1])
            assert {backend.max_outstanding for backend in settings.backends} == {sequences}
    assert len(models) == 1


def test_files_and_secrets_are_where_the_configuration_looks(settings: RouterSettings) -> None:
    (container,) = pod()["containers"]
    volumes = {volume["name"]: volume for volume in pod()["volumes"]}
    mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    assert {mount["name"] for mount in mounts.values()} == set(volumes)
    assert container["args"] == ["--config", "/etc/entropy-rft/router.yaml"]
    config = mounts[container["args"][1]]
    kustomization = yaml.safe_load((CLUSTER / "kustomization.yaml").read_text(encoding="utf-8"))
    (generated,) = kustomization["configMapGenerator"]
    assert volumes[config["name"]]["configMap"]["name"] == generated["name"]
    assert config["subPath"] in generated["files"]
    secret = one("Secret")
    assert settings.auth.keys_file is not None
    keys_file = Path(settings.auth.keys_file)
    mounted = volumes[mounts[str(keys_file.parent)]["name"]]["secret"]
    assert mounted["secretName"] == secret["metadata"]["name"]
    assert mounted["defaultMode"] == 0o440
    (item,) = mounted["items"]
    assert item["path"] == keys_file.name
    assert item["key"] in secret["stringData"]
    given = {variable["name"]: variable["valueFrom"]["secretKeyRef"] for variable in container["env"]}
    wanted = {backend.api_key_env for backend in settings.backends} | {settings.features.api_key_env}
    assert wanted == set(given)
    for reference in given.values():
        assert reference["name"] == secret["metadata"]["name"]
        assert reference["key"] in secret["stringData"]
    assert settings.probe == "/probe"
    assert "/probe\n" in (RECIPES / "Containerfile").read_text(encoding="utf-8")


def test_the_example_secret_holds_keys_that_the_router_reads(
    settings: RouterSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from entropy_rft.router.keys import read_keys

    file = tmp_path / "keys"
    file.write_text(one("Secret")["stringData"]["client-keys"], encoding="utf-8")
    assert read_keys(None, str(file)) == ("change-me-too",)


def test_pod_is_locked_down() -> None:
    (container,) = pod()["containers"]
    assert pod()["securityContext"]["runAsNonRoot"] is True
    assert pod()["securityContext"]["runAsUser"] > 0
    assert f"USER {pod()['securityContext']['runAsUser']}:" in (RECIPES / "Containerfile").read_text(encoding="utf-8")
    assert pod()["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod()["automountServiceAccountToken"] is False
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    for kind in ("requests", "limits"):
        assert "memory" in container["resources"][kind]


def test_a_pod_that_stops_may_finish_its_streams(settings: RouterSettings) -> None:
    assert pod()["terminationGracePeriodSeconds"] > settings.drain_delay_s + settings.drain_s
    ready = pod()["containers"][0]["readinessProbe"]
    assert settings.drain_delay_s > ready["periodSeconds"] * ready["failureThreshold"]
    generation = pod("StatefulSet", "vllm-generation")
    assert generation["terminationGracePeriodSeconds"] >= settings.drain_s


def metric_names() -> set[str]:
    """The names of all samples of a router that has backends and a feature cache."""

    class Backend:
        name, up, outstanding, limit, requests, failures = "b", True, 0, 1, 0, 0

        def __init__(self) -> None:
            self.limits_thinking = {"/v1/chat/completions": True}

        def breaker(self, now: float) -> int:
            return 0

        def cooling_s(self, now: float) -> float:
            return 0.0

    class Pool:
        backends = (Backend(),)

    class Features:
        hits = misses = 0

    metrics = Metrics()
    metrics.watch(Pool(), Features())  # type: ignore[arg-type]
    metrics.ended("chat", "easy", "200")
    metrics.fell_back("image")
    metrics.applied("easy", ["temperature"])
    metrics.watch_probe({}, "0123456789ab")
    metrics.arms.ended("treatment", "200", 1.0)
    metrics.arms.answered("treatment", 1, 1)
    metrics.arms.would_apply("easy", ["temperature"])
    registry: CollectorRegistry = metrics.registry
    families = list(registry.collect())
    assert [family.name for family in families if not family.samples] == []  # each was counted once, above
    return {sample.name for family in families for sample in family.samples}


def test_hpa_and_alerts_and_the_adapter_use_metrics_that_exist() -> None:
    exported = metric_names()
    adapter = yaml.safe_load((CLUSTER / "prometheus-adapter.values.yaml").read_text(encoding="utf-8"))
    offered = set()
    for rule in adapter["rules"]["custom"]:
        (series,) = re.findall(r"^(\w+)\{", rule["seriesQuery"])
        assert series in exported
        assert {"<<.Series>>", "<<.LabelMatchers>>", "<<.GroupBy>>"} <= set(re.findall("<<.*?>>", rule["metricsQuery"]))
        offered.add(rule["name"]["as"])
    hpa = one("HorizontalPodAutoscaler")["spec"]
    assert {metric["pods"]["metric"]["name"] for metric in hpa["metrics"]} == offered
    target = one("Deployment")
    assert hpa["scaleTargetRef"] == {
        "apiVersion": target["apiVersion"],
        "kind": target["kind"],
        "name": target["metadata"]["name"],
    }
    assert "replicas" not in target["spec"]  # an apply would undo the HPA
    assert hpa["minReplicas"] >= 2
    for group in one("PrometheusRule")["spec"]["groups"]:
        for rule in group["rules"]:
            used = set(re.findall(r"\bentropy_rft_\w+", rule["expr"]))
            assert used, rule["alert"]
            assert used <= exported


# ---- one engine: the router inside vLLM

ONE_ENGINE = RECIPES / "one_engine"
CLASS = "entropy_rft.router.middleware.RouterMiddleware"
VLLM = "entropy-rft-vllm"


def of_one_engine() -> list[dict[str, Any]]:
    kubernetes = ONE_ENGINE / "kubernetes"
    files = [*yaml.safe_load((kubernetes / "kustomization.yaml").read_text(encoding="utf-8"))["resources"]]
    files.append("secret.example.yaml")
    return [each for file in files for each in yaml.safe_load_all((kubernetes / file).read_text(encoding="utf-8"))]


def the(kind: str) -> dict[str, Any]:
    (found,) = [each for each in of_one_engine() if each["kind"] == kind and each["metadata"]["name"] == VLLM]
    return found


def test_the_class_that_the_recipes_name_is_there() -> None:
    import importlib

    module, name = CLASS.rsplit(".", 1)
    assert isinstance(getattr(importlib.import_module(module), name), type)
    assert CLASS in (ONE_ENGINE / "serve.sh").read_text(encoding="utf-8")


@pytest.mark.parametrize("file", ["middleware.yaml", "kubernetes/middleware.yaml"])
def test_middleware_yaml_is_right_as_it_stands(file: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from entropy_rft.router.middleware_settings import load_middleware_settings

    monkeypatch.setenv("ENTROPY_RFT_PROBE", "/probe")
    monkeypatch.setenv("ENTROPY_RFT_CONFIG", str(ONE_ENGINE / file))
    settings = load_middleware_settings()
    assert (settings.probe, settings.features.kind) == ("/probe", "vllm")
    whole = tmp_path / "whole.yaml"
    whole.write_text(commented((ONE_ENGINE / file).read_text(encoding="utf-8")), encoding="utf-8")
    monkeypatch.setenv("ENTROPY_RFT_CONFIG", str(whole))
    assert load_middleware_settings().model_dump() == settings.model_dump()  # the commented lines are the defaults


@needs_bash
@pytest.mark.integration
def test_serve_script_starts_vllm_with_the_middleware(tmp_path: Path) -> None:
    program, probe = tmp_path / "vllm", tmp_path / "probe"
    program.write_text('#!/usr/bin/env bash\nprintf "%s\\n" "$ENTROPY_RFT_PROBE" "$ENTROPY_RFT_CONFIG" "$@"\n')
    program.chmod(0o755)
    environment = {**os.environ, "MODEL": "some/model", "PROBE": str(probe), "VLLM": str(program)}

    def run() -> subprocess.CompletedProcess[str]:
        command = [ONE_ENGINE / "serve.sh", "--port", "9"]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)

    without = run()
    assert (without.returncode, without.stdout) == (1, "")
    assert "holds no probe.json" in without.stderr
    probe.mkdir()
    (probe / "probe.json").write_text("{}")
    lines = run().stdout.splitlines()
    assert lines == [
        *(str(probe), str(ONE_ENGINE / "middleware.yaml")),
        *("serve", "some/model", "--middleware", CLASS, "--port", "9"),
    ]


def test_the_cluster_of_one_engine_fits_together() -> None:
    kubernetes = ONE_ENGINE / "kubernetes"
    kustomization = yaml.safe_load((kubernetes / "kustomization.yaml").read_text(encoding="utf-8"))
    (generated,) = kustomization["configMapGenerator"]
    used = {*kustomization["resources"], *generated["files"], "kustomization.yaml", "secret.example.yaml"}
    assert {file.name for file in kubernetes.iterdir()} == used
    deployment = the("Deployment")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    for kind in ("Service", "PodDisruptionBudget"):
        selector = the(kind)["spec"]["selector"]
        assert selector.get("matchLabels", selector).items() <= labels.items()
    assert deployment["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert (
        the("ServiceMonitor")["spec"]["selector"]["matchLabels"].items() <= the("Service")["metadata"]["labels"].items()
    )
    spec = deployment["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    (image,) = kustomization["images"]
    assert container["image"] == image["name"]
    arguments = container["args"]
    assert arguments[arguments.index("--middleware") + 1] == CLASS
    (port,) = container["ports"]
    assert arguments[arguments.index("--port") + 1] == str(port["containerPort"])
    (service,) = the("Service")["spec"]["ports"]
    (endpoint,) = the("ServiceMonitor")["spec"]["endpoints"]
    assert service["targetPort"] == port["name"]
    assert (endpoint["port"], endpoint["path"]) == (service["name"], "/metrics")
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert container[probe]["httpGet"] == {"path": "/health", "port": port["name"]}
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    assert {mount["name"] for mount in mounts.values()} == set(volumes)
    environment = {each["name"]: each for each in container["env"]}
    config = mounts[environment["ENTROPY_RFT_CONFIG"]["value"]]
    assert config["subPath"] in generated["files"]
    assert volumes[config["name"]]["configMap"]["name"] == generated["name"]
    assert f" {environment['ENTROPY_RFT_PROBE']['value']}\n" in (ONE_ENGINE / "Containerfile").read_text(
        encoding="utf-8"
    )
    reference = environment["VLLM_API_KEY"]["valueFrom"]["secretKeyRef"]
    assert reference["name"] == the("Secret")["metadata"]["name"]
    assert reference["key"] in the("Secret")["stringData"]
    exported = metric_names()
    for group in the("PrometheusRule")["spec"]["groups"]:
        for rule in group["rules"]:
            used_metrics = set(re.findall(r"\bentropy_rft_\w+", rule["expr"]))
            assert used_metrics, rule["alert"]
            assert used_metrics <= exported


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
@pytest.mark.integration
def test_kustomize_renders_the_cluster_of_one_engine() -> None:
    command = ["kubectl", "kustomize", ONE_ENGINE / "kubernetes"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    (config,) = [d for d in yaml.safe_load_all(result.stdout) if d["kind"] == "ConfigMap"]
    assert config["metadata"]["name"].startswith(f"{VLLM}-")


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
@pytest.mark.integration
def test_kustomize_renders_it() -> None:
    result = subprocess.run(["kubectl", "kustomize", CLUSTER], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    rendered = list(yaml.safe_load_all(result.stdout))
    (config,) = [d for d in rendered if d["kind"] == "ConfigMap"]
    (deployment,) = [d for d in rendered if d["kind"] == "Deployment" and d["metadata"]["name"] == NAME]
    spec = deployment["spec"]["template"]["spec"]
    (volume,) = [volume for volume in spec["volumes"] if volume["name"] == "config"]
    assert volume["configMap"]["name"] == config["metadata"]["name"] != NAME  # with the content's hash
    assert spec["containers"][0]["image"].startswith("registry.example.org/")
    assert config["data"]["router.yaml"] == (CLUSTER / "router.yaml").read_text(encoding="utf-8")
