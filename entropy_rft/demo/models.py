"""What the demo can train, and at which size. Importing it is cheap: the help of the command line reads it."""

from __future__ import annotations

from dataclasses import dataclass

from entropy_rft.assets import DEFAULT_MODEL


@dataclass(frozen=True)
class DemoModel:
    """A model of the demo.

    Attributes:
        name: as anywhere a model is named.
        about: what is trained on what, and for how long on two cores.
        recipes: the folder of the recipes, which say everything about the training.
        questions: held-out questions; the levels of difficulty take turns.
        samples: completions of a question.
        batch_size: completions that an evaluation generates at once.
    """

    name: str
    about: str
    recipes: str
    questions: int
    samples: int
    batch_size: int


MODELS: dict[str, DemoModel] = {
    model.name: model
    for model in (
        DemoModel(
            DEFAULT_MODEL,
            "the embedded model, on chains of five operations modulo ten (5 to 8 minutes on two cores)",
            recipes="tiny",
            questions=200,
            samples=8,
            batch_size=256,
        ),
        DemoModel(
            "smollm2",
            "SmolLM2, a real language model, on sums of one-digit numbers: few steps, which show that it works and "
            "compare nothing (10 to 20 minutes on two cores)",
            recipes="smollm2",
            questions=24,
            samples=4,
            batch_size=32,
        ),
    )
}
