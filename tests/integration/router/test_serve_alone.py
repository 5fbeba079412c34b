"""`entropy-rft serve` as a person tries it first: without configuration, and with the openai client."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import openai
import pytest
from processes import ServerProcess

pytestmark = pytest.mark.integration

QUESTION = [{"role": "user", "content": "Start at 3, then +8 *9 -7 +4 *3, modulo 10?"}]
PATIENCE = 120.0


def test_without_any_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("ENTROPY_RFT_ROUTER_"):
            monkeypatch.delenv(name)
    command = [sys.executable, "-m", "entropy_rft", "serve", "--port", "{port}"]
    with ServerProcess(command, tmp_path / "router.log", ready="/ready") as router:
        router.wait_until_ready(PATIENCE)
        with openai.OpenAI(base_url=f"{router.url}/v1", api_key="any", max_retries=0, timeout=PATIENCE) as client:
            (model,) = client.models.list().data
            for _ in range(5):  # a busy machine may miss the probe's deadline, but the question is remembered then
                raw = client.chat.completions.with_raw_response.create(model=model.id, messages=QUESTION)
                if raw.headers["x-entropy-rft-reason"] != "feature_timeout":
                    break
            assert raw.headers["x-entropy-rft-difficulty"] in ("easy", "normal", "hard")
            # The probe was asked: one of the two words for that, and none for why it could not be.
            assert raw.headers["x-entropy-rft-reason"] in ("probe", "low_confidence")
            assert 1 / 3 <= float(raw.headers["x-entropy-rft-confidence"]) <= 1
            (choice,) = raw.parse().choices
            assert choice.message.content
            assert choice.finish_reason == "stop"

            chunks = list(client.chat.completions.create(model=model.id, messages=QUESTION, stream=True))
            assert len(chunks) > 5  # it came as it was written
            assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
            assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"

            client.chat.completions.create(model=model.id, messages=QUESTION, extra_body={"difficulty": "easy"})
        router.process.send_signal(signal.SIGTERM)
        assert router.process.wait(PATIENCE) == 0, router.said()
        assert "Traceback" not in router.said()
