"""What every test may use: a random model of a few thousand parameters and its tokenizer."""

from __future__ import annotations

import gc
import os
import runpy
import sys
from pathlib import Path
from typing import Any

# Before anything imports torch or transformers: no test may use a model hub, and the suite shares two cores.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Models of a few thousand parameters: a second thread only waits for the first.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

# This process, and those that it starts: see the file that is found there.
STARTUP = str(Path(__file__).parent / "startup")
if STARTUP not in (paths := os.environ.get("PYTHONPATH", "").split(os.pathsep)):
    os.environ["PYTHONPATH"] = os.pathsep.join([STARTUP, *filter(None, paths)])
runpy.run_path(f"{STARTUP}/sitecustomize.py")
# These files start runs of several processes. No two of them may compete for two cores.
SEVERAL_PROCESSES = (
    "test_doctor_runs.py",
    "test_launching.py",
    "test_ranks.py",
    "test_smollm2_zero3.py",
    "test_survival.py",
    "test_zero3.py",
)

# These share vLLM's two servers.
SAME_SERVERS = ("test_vllm_features.py", "test_vllm_router.py")

CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--soak", action="store_true", help="also run the tests that are marked as soak")


def _starts_several_processes(file: str) -> bool:
    return Path(file).name in SEVERAL_PROCESSES


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is for ``--soak``, and begin with what takes longest."""
    if not config.getoption("--soak"):
        left_out = [item for item in items if item.get_closest_marker("soak")]
        items[:] = [item for item in items if not item.get_closest_marker("soak")]
        config.hook.pytest_deselected(items=left_out)
    items.sort(key=lambda item: not _starts_several_processes(item.path.name))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A file's tests go to one worker, since they share servers and models; `SEVERAL_PROCESSES` count as one file, and
    so do `SAME_SERVERS`.

    (What pytest-xdist 3.8 has for that, `xdist_group`, has no effect under pytest 9.2.)
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            if Path(file).name in SAME_SERVERS:
                return "vLLM's servers"
            return "several processes" if _starts_several_processes(file) else file

    config.option.loadscopereorder = False  # the order is that of the collection
    return ByFile(config, log)


@pytest.fixture(scope="session")
def frozen() -> dict[str, int]:
    """How many modules there were when what is imported was last frozen."""
    return {"modules": 0}


@pytest.fixture(scope="module", autouse=True)
def _freeze_what_is_imported(frozen: dict[str, int]) -> None:
    """Each training makes two full collections, and each would take half a second to walk through torch and TRL."""
    if len(sys.modules) > frozen["modules"] + 500:
        gc.collect()
        gc.freeze()
        frozen["modules"] = len(sys.modules)


@pytest.fixture(scope="session")
def random_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Qwen3 with a byte-level tokenizer, saved; its output is random text without thinking."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    directory = tmp_path_factory.mktemp("random-model")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE({character: i for i, character in enumerate(alphabet)}, []))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="<|pad|>",
        eos_token="<|end|>",
        padding_side="left",
        chat_template=CHAT_TEMPLATE,
        extra_special_tokens=["<|user|>", "<|assistant|>", "<|system|>"],
    )
    tokenizer.add_tokens(["<think>", "</think>"])
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.5,  # peaked enough that entropies differ between positions
    )
    Qwen3ForCausalLM(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory
