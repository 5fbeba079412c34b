"""From a recipe to a trained model in a run directory."""

from __future__ import annotations

import gc
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object
from safetensors import SafetensorError
from transformers import TrainerCallback
from trl import get_peft_config, get_quantization_config

from entropy_rft.assets import DEFAULT_MODEL
from entropy_rft.errors import UserValueError, users
from entropy_rft.models.sources import model_source
from entropy_rft.models.tokenizers import load_tokenizer
from entropy_rft.rewards import build_rewards
from entropy_rft.rewards.parameters import ENTROPIES, parameters_of
from entropy_rft.run_files import METRICS, RECIPE
from entropy_rft.sampling.completion import check_prompts
from entropy_rft.sampling.identity import digest
from entropy_rft.sampling.marker import ThinkEndMarker, missing_marker
from entropy_rft.tasks import Task, check_options, load_task
from entropy_rft.threads import watch
from entropy_rft.training.changes import Changes, changes, recorded, sentence
from entropy_rft.training.checkpoints import CheckpointKeeper, SameOrder, checkpoint_to_resume, put_aside, resumed_step
from entropy_rft.training.columns import without_trls_columns
from entropy_rft.training.failures import FiniteWeights, NothingLeft, StepsLeft, TrainingFailed, explained
from entropy_rft.training.launch import engine
from entropy_rft.training.lock import DirectoryLock, in_use
from entropy_rft.training.recipe import Recipe
from entropy_rft.training.run_directory import RunDirectory, RunRecorder
from entropy_rft.training.trainer import EntropyGRPOTrainer


def recipe_task(recipe: Recipe, split: str, limit: int | None) -> Task:
    """The task of a recipe, of another split and size.

    Raises:
        ValueError: the recipe's task cannot be loaded; one line.
    """
    options = recipe.task.task_options or {}
    assert isinstance(options, dict)
    check_options(options)
    path = recipe.task.task_path
    return load_task(
        recipe.task.task, path=path, split=split, limit=limit, seed=recipe.training.data_seed or 0, **options
    )


class TrainingRun:
    """A recipe that is ready to train: the constructor finds every mistake of the user.

    Args:
        recipe: what to train, and how.
        command: recorded in ``run.json``.
        callbacks: further callbacks of the trainer.

    Raises:
        ValueError, TypeError, OSError: naming what is wrong with the recipe.
    """

    def __init__(self, recipe: Recipe, command: Sequence[str] = (), callbacks: Sequence[TrainerCallback] = ()) -> None:
        args = recipe.training
        doctor = recipe.doctor.build(RunDirectory(args.output_dir))
        task = recipe_task(recipe, recipe.task.task_split, recipe.task.task_limit)
        evaluated = None
        if recipe.task.eval_split is not None:
            evaluated = recipe_task(recipe, recipe.task.eval_split, recipe.task.eval_limit).dataset
        elif args.eval_strategy != "no":
            raise UserValueError(
                f"eval_strategy is {args.eval_strategy!s}, but there is no eval_split: name the split to evaluate on"
            )
        questions = without_trls_columns(task.dataset, task.name)
        evaluated = None if evaluated is None else without_trls_columns(evaluated, task.name)
        rewards = build_rewards(recipe.task.rewards, task.reward_funcs, recipe.task.pear)
        self.checkpoint = checkpoint_to_resume(args.resume_from_checkpoint, args.output_dir)
        self.directory = RunDirectory(args.output_dir)
        self._lock = DirectoryLock(args.output_dir)
        if args.process_index == 0 and (holder := self._lock.holder()) is not None:
            raise UserValueError(in_use(args.output_dir, holder))
        self._check_output_dir()
        if self._continues:  # its result is in the metrics already
            args.eval_on_start = False
        self.recipe = recipe
        self.command = list(command)
        model = _local_model(recipe)
        self._questions = digest(task.dataset)
        self._recipe_found = self._recipe_of(self.checkpoint)
        self._changes = self._changes_since(self.checkpoint)
        if Path(model).resolve() == self.directory.path.resolve() and Path(model).is_dir() and not self._continues:
            raise UserValueError(
                f"output_dir {args.output_dir!r} is model_name_or_path too, and the run would overwrite its files: "
                "name another output_dir"
            )
        tokenizer = load_tokenizer(
            model, revision=recipe.model.model_revision, trust_remote_code=args.trust_remote_code
        )
        needs_entropies = any(ENTROPIES & parameters_of(reward) for reward in rewards)
        if needs_entropies and not ThinkEndMarker(tokenizer, args.think_end_token):
            # The trainer checks it too, but only after minutes of loading weights.
            raise UserValueError(missing_marker(args.think_end_token, tokenizer))
        variables = args.chat_template_kwargs
        for dataset in (task.dataset, evaluated):
            if dataset is not None:
                check_prompts(tokenizer, dataset["prompt"], variables if isinstance(variables, dict) else None)
        groups = args.generation_batch_size // args.num_generations
        if len(task.dataset) < groups:
            raise UserValueError(
                f"task {task.name!r} has {len(task.dataset)} questions, but a generation takes {groups} "
                f"(generation_batch_size {args.generation_batch_size} / num_generations {args.num_generations})"
            )
        if Path(args.output_dir).exists() and not Path(args.output_dir).is_dir():
            raise UserValueError(f"output_dir {args.output_dir!r} is a file")
        if self.directory.path.is_symlink():  # TRL cannot create the target of a link
            self.directory.make()
        # The keeper deletes older checkpoints: the trainer would do it before the new one is complete.
        keeper = CheckpointKeeper(args.save_total_limit)
        args.save_total_limit = None
        with users(ValueError, ImportError):  # TRL's
            quantization, peft = get_quantization_config(recipe.model), get_peft_config(recipe.model)
        # Errors of the weights, the device and the packages that the recipe asks for are raised here.
        with users(OSError, ImportError, RuntimeError, SafetensorError):
            self.trainer = EntropyGRPOTrainer(
                model=model,
                reward_funcs=rewards,
                args=args,
                train_dataset=questions,
                eval_dataset=evaluated,
                quantization_config=quantization,
                peft_config=peft,
                callbacks=[
                    RunRecorder(self.directory),
                    keeper,
                    SameOrder(),
                    FiniteWeights(),
                    *([] if doctor is None else [doctor]),
                    *callbacks,
                    StepsLeft(),
                ],
            )
        watch(self.trainer.model)

    def train(self) -> EntropyGRPOTrainer:
        """Train, resume if the recipe says so, and save the model, its tokenizer and the run's description.

        Raises:
            TrainingFailed: with the cause in one line, where it is known.
        """
        try:
            with explained(self.trainer):
                self._train()
        finally:
            self._lock.release()
        return self.trainer

    def _train(self) -> None:
        args = self.recipe.training
        # The main process renames nothing before every process has found the checkpoint.
        refusal = None
        if self.trainer.accelerator.is_main_process:
            try:
                self._lock.acquire()
                self._check_that_nothing_came()
            except (ValueError, PermissionError) as error:  # the other processes must not wait for this one
                refusal = str(error)
        states = gather_object([(resumed_step(self.checkpoint), refusal)])
        refusal = next((said for _, said in states if said is not None), None)
        if refusal is not None:
            raise TrainingFailed(refusal, exit_code=2)
        steps = sorted({step for step, _ in states})
        if len(steps) > 1:
            raise TrainingFailed(
                f"the processes would resume from different steps ({', '.join(map(str, steps))}): output_dir "
                f"{args.output_dir!r} must be one that all machines share",
                exit_code=2,
            )
        if self.trainer.accelerator.is_main_process:
            self._make_room()
            history = self._record_changes()
            self.directory.describe(
                self.recipe.resolved(),
                seed=args.seed,
                command=self.command,
                device=str(self.trainer.accelerator.device),
                processes=self.trainer.accelerator.num_processes,
                engine=engine(self.trainer.accelerator),
                name=args.run_name or Path(args.output_dir).name,
                questions=self._questions,
                changes=history,
            )
        self.trainer.accelerator.wait_for_everyone()
        try:
            self.trainer.train(resume_from_checkpoint=None if self.checkpoint is None else str(self.checkpoint))
        except NothingLeft:
            self.trainer.load_best_model()
        self.trainer.save_model(args.output_dir)

    def _check_that_nothing_came(self) -> None:
        """Another run may have started and ended while the weights were loaded, since the lock was not held then."""
        args = self.recipe.training
        checkpoint = checkpoint_to_resume(args.resume_from_checkpoint, args.output_dir)
        if (checkpoint, self._recipe_of(checkpoint)) != (self.checkpoint, self._recipe_found):
            raise UserValueError(
                f"output_dir {args.output_dir!r} was changed by another run while this one was loading: start it again"
            )

    @staticmethod
    def _recipe_of(checkpoint: Path | None) -> Any:
        return None if checkpoint is None else RunDirectory(checkpoint.parent).recipe()

    def close(self) -> None:
        """Leave the process group.

        DDP's reducer is deleted first. If it were the last object to hold the process group, gloo's threads would be
        joined while the interpreter is locked. A thread that still holds a tensor would wait for that lock forever.
        """
        accelerator = self.trainer.accelerator
        accelerator.wait_for_everyone()
        self.trainer.model_wrapped = self.trainer.model
        accelerator.free_memory()
        gc.collect()
        args = self.recipe.training
        if not (args.use_vllm and args.vllm_mode == "colocate"):  # vLLM destroys those groups at exit
            accelerator.end_training()

    @property
    def _continues(self) -> bool:
        """Whether this is the run in output_dir, resumed from a checkpoint of its own."""
        # The checkpoint itself may be a link to another disk.
        return self.checkpoint is not None and self.checkpoint.parent.resolve() == self.directory.path.resolve()

    def _check_output_dir(self) -> None:
        output_dir = self.directory.path
        if self._continues:
            return
        if self.checkpoint is not None and output_dir.resolve() in self.checkpoint.absolute().parents:
            raise UserValueError(
                f"resume_from_checkpoint {str(self.checkpoint)!r} is inside output_dir {str(output_dir)!r}, which "
                "would be renamed: move the checkpoint, or name another output_dir"
            )
        if self.directory.exists and output_dir.resolve() == Path.cwd():
            raise UserValueError(
                f"output_dir {str(output_dir)!r} is the current directory and holds an earlier run, which cannot be "
                "renamed from here: name another output_dir"
            )

    def _changes_since(self, checkpoint: Path | None) -> Changes:
        """What this recipe changes in the meaning of the run that `checkpoint` belongs to.

        Raises:
            ValueError: naming each field with both values, unless the recipe sets `resume_with_changes`.
        """
        if checkpoint is None:
            return {}
        found = self._differences(RunDirectory(checkpoint.parent))
        if found is None:  # another trainer's checkpoint, or one that was moved: its recipe is unknown
            return {}
        if found and not self.recipe.resume_with_changes:
            raise UserValueError(
                f"the run of checkpoint {str(checkpoint)!r} had another recipe: {sentence(found)}; "
                "--resume_with_changes resumes and records it, another output_dir without resume_from_checkpoint "
                "starts a new run"
            )
        return found

    def _differences(self, run: RunDirectory) -> Changes | None:
        """The changes between the recipe of `run` and this one; None where that recipe is not known."""
        before = run.recipe()
        if before is None:
            return None
        description = run.description()
        processes = int(self.recipe.training.world_size)
        found = changes(
            before, self.recipe.resolved(), processes=(int(description.get("processes") or processes), processes)
        )
        questions = description.get("questions")
        if questions is not None:  # then a file of questions may be moved, but must hold the same ones
            found.pop("task_path", None)
            if questions != self._questions:
                found["the questions (their digest)"] = (questions, self._questions)
        return found

    def _is_this_run(self) -> bool:
        found = self._differences(self.directory)
        # A run that was killed while it wrote its first two files has lost nothing.
        bare = found is None and not any((self.directory.path / name).exists() for name in (METRICS, RECIPE))
        return bare or found == {}

    def _record_changes(self) -> list[dict[str, Any]]:
        """All changes of recipe so far, for ``run.json``; the recipe before the newest one is kept."""
        history = list(self.directory.description().get("changes") or []) if self._continues else []
        if self._changes:
            step = resumed_step(self.checkpoint)
            kept = self.directory.keep_recipe() if self._continues else str(self.checkpoint)
            history.append(recorded(self._changes, step, kept))
            print(f"resumed after step {step} with another recipe: {sentence(self._changes)}", file=sys.stderr)
        return history

    def _make_room(self) -> None:
        """Rename an earlier run, unless this one resumes it, and checkpoints that would mix with the new ones."""
        args = self.recipe.training
        # A run that is killed before its first checkpoint and started again many times must not leave many copies.
        again = self.checkpoint is None and str(args.resume_from_checkpoint).lower() == "auto"
        if again and self.directory.exists and not self.directory.has_model and self._is_this_run():
            print(
                f"{args.output_dir} holds no complete checkpoint yet: the run starts from the beginning",
                file=sys.stderr,
            )
        elif not self._continues and (moved := self.directory.set_aside()) is not None:
            self._lock.follow(moved)
            print(f"{args.output_dir} held an earlier run, which is now in {moved}", file=sys.stderr)
        step = resumed_step(self.checkpoint) if self._continues else 0
        for line in put_aside(args.output_dir, step):
            print(line, file=sys.stderr)
        self._warn_within_generation(step)
        if args.log_completions:  # TRL made this folder when it was constructed
            (self.directory.path.resolve() / "completions").mkdir(parents=True, exist_ok=True)

    def _warn_within_generation(self, step: int) -> None:
        args = self.recipe.training
        micro_batches = args.steps_per_generation * args.num_iterations
        if step * args.gradient_accumulation_steps % micro_batches:
            every = -(-micro_batches // args.gradient_accumulation_steps)
            print(
                f"step {step} is inside a generation, whose completions are not in the checkpoint: they are sampled "
                f"again, and the run will differ from an uninterrupted one (make save_steps a multiple of {every})",
                file=sys.stderr,
            )


def _local_model(recipe: Recipe) -> str:
    """The model's directory or hub name; TRL loads it with the arguments set here."""
    model = recipe.model
    if model.model_name_or_path is None:
        model.model_name_or_path = DEFAULT_MODEL
    name = model_source(model.model_name_or_path)
    if (name.startswith((".", "/", "~")) or name.count("/") > 1) and not Path(name).is_dir():
        raise UserValueError(f"model_name_or_path {name!r} is not a directory")
    options = {
        "revision": model.model_revision,
        "attn_implementation": model.attn_implementation,
        "dtype": model.dtype,
    }
    given = recipe.training.model_init_kwargs or {}
    assert isinstance(given, dict)  # TRL has parsed the command line's JSON
    recipe.training.model_init_kwargs = {k: v for k, v in options.items() if v is not None} | given
    return name
