from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from training_inputs import prompts, some_reward


@pytest.fixture
def make_trainer(random_model_dir: Path, tmp_path: Path) -> Callable[..., Any]:
    """``make_trainer(**options)``: an EntropyGRPOTrainer of the random model; unknown options are config fields."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from entropy_rft import EntropyGRPOConfig, EntropyGRPOTrainer

    def make(
        reward_funcs: Any = some_reward,
        trainer_class: type = EntropyGRPOTrainer,
        config_class: type = EntropyGRPOConfig,
        dataset: Any = None,
        trainer_options: dict[str, Any] | None = None,
        **options: Any,
    ) -> Any:
        args = config_class(
            **{
                "output_dir": str(tmp_path / "run"),
                "per_device_train_batch_size": 8,
                "num_generations": 4,
                "max_completion_length": 12,
                "max_steps": 2,
                "learning_rate": 1e-3,
                "bf16": False,
                "use_cpu": True,
                "report_to": [],
                "logging_steps": 1,
                "save_strategy": "no",
                "disable_tqdm": True,
                **options,
            }
        )
        return trainer_class(
            model=AutoModelForCausalLM.from_pretrained(random_model_dir, dtype=torch.float32),
            reward_funcs=reward_funcs,
            args=args,
            train_dataset=prompts() if dataset is None else dataset,
            processing_class=AutoTokenizer.from_pretrained(random_model_dir, padding_side="left"),
            **(trainer_options or {}),
        )

    return make


@pytest.fixture(scope="session")
def vllm_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Any]]:
    """vLLM's real servers, one that generates and one that pools."""
    from vllm_servers import both_servers

    with both_servers(tmp_path_factory.mktemp("vllm")) as servers:
        yield servers


@pytest.fixture(scope="session")
def smollm2_dir() -> Path:
    """SmolLM2-135M-Instruct, fetched into the user's cache as `entropy-rft fetch smollm2` does it, if it is not there.

    All workers share it: whoever comes first fetches, the others wait for its lock.
    """
    from entropy_rft.errors import UserValueError
    from entropy_rft.models import smollm2

    try:
        return smollm2.fetch()
    except UserValueError as error:
        if "cannot download" not in str(error):
            raise
        pytest.skip(f"SmolLM2 is not in the cache, and {error}")


@pytest.fixture(scope="session")
def short_smollm2_dir(smollm2_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its first four layers: the same vocabulary, chat template and tied embeddings, in a tenth of the time."""
    import json
    import re
    import shutil

    from safetensors.torch import load_file, save_file

    directory = tmp_path_factory.mktemp("short") / "smollm2"
    shutil.copytree(smollm2_dir, directory, ignore=shutil.ignore_patterns("*.safetensors"))
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 4}))
    tensors = load_file(smollm2_dir / "model.safetensors")
    layer = re.compile(r"layers\.(\d+)\.")
    kept = {name: t for name, t in tensors.items() if not (found := layer.search(name)) or int(found[1]) < 4}
    save_file(kept, directory / "model.safetensors", metadata={"format": "pt"})
    return directory
