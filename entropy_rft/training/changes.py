"""Finds the differences between a resumed run and the run that it continues."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, fields
from enum import Enum
from pathlib import Path
from typing import Any

from trl import ModelConfig

from entropy_rft.assets import DEFAULT_MODEL
from entropy_rft.models.sources import model_place
from entropy_rft.rewards.entries import compared
from entropy_rft.training.config import EntropyGRPOConfig
from entropy_rft.training.recipe import SECRETS, TaskArguments

# Fields that do not change the meaning of a run, by the reason. Every other field changes it.
_FREE: dict[str, str] = {
    "where files are, and the name of the run": "output_dir run_name project hub_model_id hub_revision",
    "how long it runs": "max_steps num_train_epochs resume_from_checkpoint do_train do_predict",
    "what is saved, when and where to": (
        "save_strategy save_steps save_total_limit save_only_model save_on_each_node enable_jit_checkpoint push_to_hub "
        "hub_strategy hub_always_push hub_private_repo trackio_space_id trackio_bucket_id trackio_static_space_id "
        "restore_callback_states_from_checkpoint"
    ),
    "what is logged, and where to": (
        "logging_strategy logging_steps logging_first_step logging_nan_inf_filter log_level log_level_replica "
        "log_on_each_node log_completions log_completions_hub_repo log_multimodal log_unique_prompts "
        "num_completions_to_print report_to disable_tqdm include_num_input_tokens_seen include_for_metrics debug "
        "skip_memory_metrics entropy_metrics entropy_audit_steps entropy_lens_steps entropy_lens_tokens"
    ),
    "what is watched, and what ends the run early": "doctor doctor_stop",
    "evaluation beside the training": (
        "do_eval eval_strategy eval_steps eval_delay eval_on_start eval_split eval_limit per_device_eval_batch_size "
        "num_generations_eval eval_accumulation_steps eval_use_gather_object eval_do_concat_batches batch_eval_metrics "
        "prediction_loss_only bf16_full_eval fp16_full_eval load_best_model_at_end metric_for_best_model "
        "greater_is_better"
    ),
    "processes, devices and the engine": (
        "use_cpu local_rank deepspeed fsdp fsdp_config accelerator_config parallelism_config ddp_backend "
        "ddp_broadcast_buffers ddp_bucket_cap_mb ddp_find_unused_parameters ddp_static_graph ddp_timeout "
        "ds3_gather_for_generation torch_compile torch_compile_backend torch_compile_mode torch_empty_cache_steps "
        "gradient_checkpointing gradient_checkpointing_kwargs activation_checkpointing activation_checkpointing_kwargs "
        "attn_implementation use_liger_kernel liger_kernel_config use_cache shrink_generation_batch "
        "full_determinism trust_remote_code"
    ),
    "where vLLM runs": (
        "vllm_mode vllm_model_impl vllm_server_base_url vllm_server_host vllm_server_port vllm_server_timeout "
        "vllm_group_port vllm_gpu_memory_utilization vllm_tensor_parallel_size vllm_enable_sleep_mode "
        "vllm_max_model_length"
    ),
    "how batches are loaded": (
        "dataloader_num_workers dataloader_pin_memory dataloader_prefetch_factor dataloader_persistent_workers "
        "dataloader_multiprocessing_context"
    ),
}
FREE = frozenset(name for names in _FREE.values() for name in names.split()) | SECRETS

# Together with the number of processes these say how many completions an update and a generation take.
_BATCH = ("per_device_train_batch_size", "gradient_accumulation_steps", "steps_per_generation", "generation_batch_size")

Changes = dict[str, tuple[Any, Any]]


def changes(before: Mapping[str, Any], now: Mapping[str, Any], *, processes: tuple[int, int] = (1, 1)) -> Changes:
    """The fields that make two recipes different runs, each with its value before and now.

    A field that a recipe leaves out has its default. The batch sizes are compared as products with the number of
    processes, so that a run can be resumed with more processes. A different number of processes alone is no change of
    the recipe.

    Args:
        before: a resolved recipe, as ``recipe.yaml`` holds it.
        now: another one.
        processes: of both runs.
    """
    known = {f.name: f for part in (TaskArguments, EntropyGRPOConfig, ModelConfig) for f in fields(part)}
    found: Changes = {}
    for name in sorted((before.keys() | now.keys()) - FREE - {*_BATCH}):
        values = [_value(name, recipe, known.get(name)) for recipe in (before, now)]
        if values[0] != values[1]:
            found[name] = (values[0], values[1])
    batches = [{name: _value(name, recipe, known[name]) for name in _BATCH} for recipe in (before, now)]
    if _completions(batches[0], processes[0]) != _completions(batches[1], processes[1]):
        found |= {name: (batches[0][name], batches[1][name]) for name in _BATCH if batches[0][name] != batches[1][name]}
    return found


def sentence(found: Changes) -> str:
    """Each field with both values, in one line."""
    return "; ".join(f"{name} was {_shown(old)}, is now {_shown(new)}" for name, (old, new) in found.items())


def recorded(found: Changes, step: int, recipe: str | None) -> dict[str, Any]:
    """The entry in ``run.json``: after which step, which fields, and the file of the recipe before."""
    return {
        "after_step": step,
        "fields": {name: {"before": old, "now": new} for name, (old, new) in found.items()},
        "recipe_before": recipe,
    }


def _completions(batch: Mapping[str, Any], processes: int) -> tuple[float, float]:
    device, accumulation = (float(batch[name] or 1) for name in _BATCH[:2])
    generation = batch["generation_batch_size"]
    if not generation:
        generation = device * processes * float(batch["steps_per_generation"] or accumulation)
    return device * accumulation * processes, float(generation)


def _value(name: str, recipe: Mapping[str, Any], field: Any) -> Any:
    if name in recipe:
        value = recipe[name]
    elif field is None or (field.default is MISSING and field.default_factory is MISSING):
        value = None
    else:
        value = field.default if field.default is not MISSING else field.default_factory()
    if isinstance(value, Enum):
        value = value.value
    kind = "" if field is None else str(field.type)
    if isinstance(value, str):
        value = _parsed(value, kind)
    if name == "model_name_or_path":
        value = model_place(value or DEFAULT_MODEL)
    elif name == "task_path" and value is not None:
        value = str(Path(value).expanduser().absolute())
    elif name == "rewards":
        value = compared(value)
    elif name == "reward_weights" and value is not None and not isinstance(value, list | tuple):
        value = [value]
    return list(value) if isinstance(value, tuple) else value


def _parsed(text: str, kind: str) -> Any:
    """A value that a recipe or a flag gave as text: YAML reads ``1e-5`` as text."""
    if "dict" in kind and text.lstrip().startswith("{"):
        try:
            return json.loads(text)
        except ValueError:
            return text
    if "bool" in kind and text.lower() in ("true", "false", "yes", "no"):
        return text.lower() in ("true", "yes")
    if "int" in kind or "float" in kind:
        try:
            return float(text)
        except ValueError:
            return text
    return text


def _shown(value: Any) -> str:
    return json.dumps(value, default=str) if isinstance(value, dict | list) else str(value)
