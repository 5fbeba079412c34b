"""reasoning-gym: about a hundred generators of questions, each with its own verifier.

A question belongs to one split for ever, by a hash of its text, as in the arithmetic task; and the splits draw from
seeds that never meet. So no seed can leak a test question into training, also where a generator has few questions.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from os import PathLike
from typing import Any

from entropy_rft.errors import UserTypeError, UserValueError
from entropy_rft.suggestions import did_you_mean
from entropy_rft.tasks import generators
from entropy_rft.tasks.generated import SPLITS, check_split
from entropy_rft.tasks.task import Task, chat_prompt
from entropy_rft.tasks.verifier import COLUMN, TAGGED, PartialCredit, Verifier

_SIZES = {"train": 1000, "validation": 200, "test": 200}
_BLOCK = 1 << 30  # seeds of a split: the three fit into the 2**32 that numpy takes
_CHUNK = 500  # questions of one data set of the package, which is its own default
_STRIDE = 1_000  # seeds between two of them
_SILENCE = 3.0  # seconds
_PATIENCE = 300  # draws without a new question before a generator counts as used up

Question = dict[str, Any]
"""`question`, `answer` (text or None) and `metadata`, as reasoning-gym has them."""


def split_of(question: str) -> str:
    """The split that a question belongs to: half of all train, a quarter validation, a quarter test."""
    bucket = hashlib.sha256(question.encode()).digest()[0] % 4
    return "test" if bucket == 3 else "validation" if bucket == 2 else "train"


def questions(
    generator: str, settings: Mapping[str, Any], level: int | None, split: str, seed: int
) -> Iterator[Question]:
    """Distinct questions of a split, until the generator has no new ones.

    Raises:
        ValueError: the generator refuses its settings, or fails to make any question.
    """
    seen: set[str] = set()
    missed, failure = 0, None
    for data_seed in _seeds(split, level, seed):
        data = generators.make(generator, settings, level, seed=data_seed, size=_CHUNK)
        for index in range(_CHUNK):
            missed += 1
            if missed > _PATIENCE:
                if not seen and failure is not None:
                    raise UserValueError(
                        f"generator {generator!r} makes no question with these settings: {failure}"
                    ) from failure
                return
            try:
                with contextlib.redirect_stdout(io.StringIO()):  # some print while they work
                    entry = data[index]
            except Exception as error:  # some give up on some seeds, each in its own way; one of them for good
                failure = error
                break
            question = str(entry["question"])
            if question not in seen and split_of(question) == split:
                missed = 0
                seen.add(question)
                yield {"question": question, "answer": entry["answer"], "metadata": entry["metadata"]}


def _seeds(split: str, level: int | None, seed: int) -> Iterator[int]:
    """Seeds of the package's data sets, from the split's own block."""
    slots = _BLOCK // _STRIDE
    first = int.from_bytes(hashlib.sha256(f"{seed}/{level}".encode()).digest()[:8], "big")
    for chunk in range(slots):
        yield SPLITS.index(split) * _BLOCK + (first + chunk) % slots * _STRIDE


def load(
    path: str | PathLike[str] | None = None,
    split: str = "train",
    limit: int | None = None,
    seed: int = 0,
    generator: str | None = None,
    levels: int | Sequence[int] | None = None,
    level_by: str | None = None,
    threshold: float = 1.0,
    partial_credit: bool = False,
    instruction: str | None = None,
    answer_format: str | None = TAGGED,
    thinking: bool = True,
    **settings: Any,
) -> Task:
    """Questions of one of reasoning-gym's generators, checked by its own verifier.

    Without a `limit`, `train` has 1,000 questions, `validation` and `test` 200 each, or as many as the generator has.
    `solution` is the generator's own answer, and None where it knows none. How an answer is read out of a completion:
    see :func:`entropy_rft.tasks.verifier.read_answer`.

    The column `level` is there where the difficulty is known: the level of `levels`, or the metadata that `level_by`
    names, or else the metadata's own `difficulty`, where that is one value (`gsm_symbolic`).

    Args:
        generator: its name, such as ``chain_sum``; ``composite`` mixes those that its setting `datasets` lists.
        levels: of the generator's curriculum, from 0; they take turns.
        level_by: a field of a question's metadata, such as ``num_terms`` of ``chain_sum``, that says how hard it is.
        threshold: least score of a right answer, above 0 and at most 1. Verifiers give well-formed wrong answers a
            little.
        partial_credit: the training reward is the verifier's score; otherwise 1 for a right answer and 0 for another.
            What counts as right in `evaluate`, in probes and to PEAR is the threshold's in both cases.
        settings: of the generator's configuration.

    Raises:
        ValueError: an option or a setting is unknown or out of range, or the generator has too few questions.
    """
    from datasets import Dataset, Features, Value

    if path is not None:
        raise UserValueError(
            f"task 'reasoning_gym' generates its questions and reads no file, but path is {str(path)!r}"
        )
    check_split("reasoning_gym", split)
    if isinstance(threshold, bool) or not isinstance(threshold, int | float):
        raise UserTypeError(f"threshold must be a number, not {threshold!r}")
    if not 0 < threshold <= 1:
        raise UserValueError(f"threshold must be above 0 and at most 1, not {threshold}")
    generators.check_installed()
    generator = generators.check_generator(generator)
    chosen = _levels(generator, levels, level_by)
    try:
        kept_settings = json.loads(json.dumps(settings))
    except (TypeError, ValueError) as error:
        raise UserValueError(
            f"the settings of generator {generator!r} must be such as JSON can hold: {error}"
        ) from error
    drawn = _draw(generator, kept_settings, chosen, split, seed, limit)
    columns: dict[str, list[Any]] = {
        "prompt": [chat_prompt(entry["question"].strip(), instruction, answer_format) for _, entry in drawn],
        "solution": [None if entry["answer"] is None else str(entry["answer"]) for _, entry in drawn],
        COLUMN: [
            generators.to_text({"generator": generator, "settings": kept_settings, "level": level, **entry})
            for level, entry in drawn
        ],
    }
    hardness = _hardness(generator, drawn, level_by)
    if hardness is not None:
        columns["level"] = hardness
    dataset = Dataset.from_dict(columns)
    if dataset.features["solution"].dtype != "string":  # not one of them is known
        dataset = Dataset.from_dict(columns, features=Features({**dataset.features, "solution": Value("string")}))
    rewards: list[Any] = [Verifier(float(threshold), thinking)]
    if partial_credit:
        rewards.append(PartialCredit(float(threshold), thinking))
    return Task(name=f"reasoning_gym/{generator}", split=split, dataset=dataset, reward_funcs=rewards)


def _levels(generator: str, levels: int | Sequence[int] | None, level_by: str | None) -> list[int | None]:
    if levels is None:
        return [None]
    if level_by is not None:
        raise UserValueError("levels and level_by exclude each other: either says what a question's level is")
    chosen = [levels] if isinstance(levels, int) else list(levels)
    if not chosen or len(set(map(str, chosen))) < len(chosen):
        raise UserValueError(f"levels must name levels, each once, not {levels!r}")
    return [generators.check_level(generator, level) for level in chosen]


def _draw(
    generator: str, settings: Mapping[str, Any], levels: Sequence[int | None], split: str, seed: int, limit: int | None
) -> list[tuple[int | None, Question]]:
    """The questions with their levels, which take turns until a level has no more or all are there."""
    streams = [questions(generator, settings, level, split, seed) for level in levels]
    wanted = limit or _SIZES[split]
    drawn: list[tuple[int | None, Question]] = []
    seen: set[str] = set()
    started, told = time.monotonic(), False
    while len(drawn) < wanted:
        if not told and time.monotonic() - started > _SILENCE:
            told = True
            print(f"making {wanted} questions of {generator}: {len(drawn)} so far", file=sys.stderr, flush=True)
        level, stream = levels[len(drawn) % len(levels)], streams[len(drawn) % len(levels)]
        entry = next((entry for entry in stream if entry["question"] not in seen), None)
        if entry is None:
            break
        seen.add(entry["question"])
        drawn.append((level, entry))
    if not drawn or (limit is not None and len(drawn) < limit):
        at = "" if levels == [None] else f" at level {levels[len(drawn) % len(levels)]}"
        raise UserValueError(
            f"generator {generator!r} has no more different questions{at} in the split {split!r} than make up "
            f"{len(drawn)}, but limit is {wanted}: ask for fewer, or for settings that allow more"
        )
    return drawn


def _hardness(
    generator: str, drawn: Sequence[tuple[int | None, Question]], level_by: str | None
) -> list[int | float | str] | None:
    """The column `level`; None where nothing says how hard the questions are."""
    if drawn[0][0] is not None:
        return [level for level, _ in drawn if level is not None]
    name = level_by or "difficulty"
    values = []
    for _, entry in drawn:
        metadata = entry["metadata"]
        if level_by is not None and level_by not in metadata:
            known = [key for key, value in metadata.items() if _is_level(value)]
            raise UserValueError(
                f"level_by: the questions of generator {generator!r} have no {level_by!r} in their metadata"
                f"{did_you_mean(level_by, known)}; it has {', '.join(known)}"
            )
        values.append(metadata.get(name))
    kinds = {_is_level(value) for value in values}
    if len(kinds) == 1 and None not in kinds:
        return values
    if level_by is not None:
        odd = next(value for value in values if not _is_level(value))
        raise UserValueError(f"level_by: {level_by!r} of generator {generator!r} is no number and no word, but {odd!r}")
    return None


def _is_level(value: Any) -> str | None:
    if isinstance(value, str):
        return "text"
    return "number" if isinstance(value, int | float) and not isinstance(value, bool) else None
