"""The OpenAPI document against the router: schemathesis asks what it describes, rightly and wrongly."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from running import FixedFeatures, RunningRouter, running_router
from stub import Stub

pytestmark = pytest.mark.integration

KEY = "sesame"
CHECKED = (
    "not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,"
    "response_schema_conformance,negative_data_rejection,positive_data_acceptance,missing_required_header,"
    "unsupported_method,allow_header_conformance,ignored_auth"
)


def schemathesis(
    router: RunningRouter, directory: Path, *arguments: str, checks: str = CHECKED, examples: int = 40
) -> str:
    """What it says; its findings are an assertion."""
    """Run its own command; what it found is the message of a failure."""
    result = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli", "run", f"{router.url}/openapi.json"),
            *(
                "--phases",
                "examples,coverage,fuzzing",
                "--checks",
                checks,
                "--max-examples",
                f"{examples}",
                "--seed",
                "1",
            ),
            *("--suppress-health-check", "all", "--request-timeout", "30", "--warnings", "off", "--no-color"),
            *("--continue-on-failure", *arguments),
        ],
        cwd=directory,  # it keeps files where it runs
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert result.returncode == 0, result.stdout[-8000:] + result.stderr[-2000:]
    return result.stdout


CONFIGURED: dict[str, dict[str, Any]] = {
    "open": {},
    "keys": {"keys_env": "CLIENT_KEYS", "public_metrics": False},
    "keys, public numbers": {"keys_env": "CLIENT_KEYS", "public_metrics": True, "public_status": True},
}


@pytest.mark.parametrize("auth", CONFIGURED.values(), ids=CONFIGURED)
def test_router_does_what_its_document_says(
    auth: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLIENT_KEYS", KEY)
    with Stub() as stub, running_router([stub.url], features=FixedFeatures((0.9, 0.05, 0.05)), auth=auth) as router:
        said = schemathesis(router, tmp_path, *(["--header", f"Authorization: Bearer {KEY}"] if auth else []))
        assert stub.requests, "nothing reached the backend"
        if auth.get("public_metrics", True):
            router.assert_idle()
        with urllib.request.urlopen(f"{router.url}/openapi.json", timeout=30) as answer:
            paths = json.load(answer)["paths"]
    described = sum(len(operations) for operations in paths.values())
    assert f"{described - 1} selected" in said, said  # all but the document itself
