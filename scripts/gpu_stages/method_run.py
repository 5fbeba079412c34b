"""One recipe of the stage `methods`: trains by it, and stops in good order when its time is over."""

from __future__ import annotations

import argparse
import time
from typing import Any

from transformers import TrainerCallback

from entropy_rft.training.recipe import RecipeParser
from entropy_rft.training.run import TrainingRun


class StopAfter(TrainerCallback):
    """Ends the training at the first step's end after so many seconds."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        if time.monotonic() > self._end:
            control.should_training_stop = True
        return control


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--stop-after", type=float, required=True, help="seconds")
    options, recipe = parser.parse_known_args()
    stop = StopAfter(options.stop_after)  # the model's loading counts
    run = TrainingRun(RecipeParser().parse(recipe), callbacks=[stop])
    run.train()
    run.close()


if __name__ == "__main__":
    main()
