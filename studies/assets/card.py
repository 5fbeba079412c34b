"""The tiny reasoner's model card, written from its provenance."""

from __future__ import annotations

from typing import Any

_TEXT = """\
---
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
---

# Tiny reasoner

A language model of {parameters:.2f} million parameters (Qwen3 architecture: 4 layers, width 128) that adds and
subtracts small integers and writes its thinking before the answer. It ships with `entropy_rft` so that training,
evaluation and serving can be tried in minutes without a GPU or a network. It can do nothing else: on any other question
it writes nonsense.

    <|im_start|>user
    What is 17 + 12 - 8?<|im_end|>
    <|im_start|>assistant
    <think>
    Let me see.
    17+12=29. Hmm, let me check that. 17+12=29. Yes.
    29-8=21.
    </think>
    The answer is \\boxed{{21}}.<|im_end|>

It was supervised on generated traces of the training questions of the task `arithmetic`, after a drill of single steps.
The traces are made so that reinforcement and adaptive inference can improve them:

- some steps are wrong by chance (the tens digit is off by one), later steps and subtractions more often. So longer sums
  are harder, and their errors are random;
- remarks and repeated steps lengthen the thinking and change no result, so the thinking can be shortened without a loss
  of accuracy. Easy and hard sums have most of them, those between fewest: this copies the U shape of large models;
- a system message may ask for another style, by the texts of `entropy_rft.tasks`. `DIRECT` writes all in one line and
  is often wrong after one or two steps; `STOP_EARLY` makes the same share of errors in all steps and soon writes the
  rest in one line; `STEP_BY_STEP` is the default style. So each of the three is the best one for some sums.

## Measured

Sampled at temperature {temperature:g} with at most {max_tokens} tokens, on {questions} questions of the test split. No
question of the test split was shown in training, but the drill covers the single steps that any question is made of.

| instruction | {levels} | all | tokens | longest |
| --- |{rules} ---: | ---: | ---: |
{rows}

With {samples} samples a question and no instruction, pass@{samples} is {passed:.3f}. The mean entropy of a token is
{entropy_thinking:.2f} nats in the thinking and {entropy_answer:.3f} nats in the answer.

## Made

`{command}` on {threads} threads in {minutes:.0f} minutes; `provenance.json` has the recipe and the versions.
"""


def model_card(provenance: dict[str, Any]) -> str:
    """The README.md of a model whose provenance `make` recorded."""
    measured = provenance["measured"]
    plain = measured["none"]
    levels = list(plain["accuracy_by_terms"])
    rows = []
    for name, result in measured.items():
        cells = [f"{result['accuracy_by_terms'][level]:.2f}" for level in levels]
        cells += [f"{result['accuracy']:.3f}", f"{result['tokens']:.0f}", str(result["longest"])]
        rows.append(f"| {name.replace('_', ' ')} | {' | '.join(cells)} |")
    return _TEXT.format(
        parameters=provenance["parameters"] / 1e6,
        temperature=plain["temperature"],
        max_tokens=plain["max_tokens"],
        questions=plain["questions"],
        samples=plain["samples"],
        passed=plain[f"pass@{plain['samples']}"],
        entropy_thinking=plain["entropy_thinking"],
        entropy_answer=plain["entropy_answer"],
        levels=" | ".join(f"{level} terms" for level in levels),
        rules=" ---: |" * len(levels),
        rows="\n".join(rows),
        command=provenance["command"],
        threads=provenance["threads"],
        minutes=sum(provenance["seconds"].values()) / 60,
    )
