"""One recipe of the stage `methods`: trains by it, and stops after a complete step when its time is over."""

from __future__ import annotations

import argparse
import time
from typing import Any

from transformers import TrainerCallback

from entropy_rft.training.recipe import RecipeParser
from entropy_rft.training.run import TrainingRun


class StopAt(TrainerCallback):
    """Ends the training with the first step that ends after that time, in seconds since the epoch."""

    def __init__(self, end: float) -> None:
        self._end = end

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        if time.time() > self._end:
            control.should_training_stop = True
        return control


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--stop-at", type=float, required=True, help="seconds since the epoch")
    options, recipe = parser.parse_known_args()
    run = TrainingRun(RecipeParser().parse(recipe), callbacks=[StopAt(options.stop_at)])
    run.train()
    run.close()


if __name__ == "__main__":
    main()
