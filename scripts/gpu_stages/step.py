"""Stage 3: a whole optimisation step of a model made at random, ours against TRL's, by scripts/bench_step.py."""

from __future__ import annotations

from gpu_stages.recording import Stage

# 0.5 B parameters: an embedding of 151,936 x 1,024 and 28 layers. Without gradient checkpointing the activations of 32
# completions of 512 tokens take about 20 GB, and the two trainers 16 GB.
SIZES = ("--hidden", "1024", "--layers", "28", "--vocabulary", "151936", "--completions", "32", "--tokens", "512")
SMALL = ("--hidden", "64", "--layers", "1", "--vocabulary", "1024", "--completions", "8", "--tokens", "16")


def main() -> int:
    stage = Stage()
    import bench_step

    words = [*(SMALL if stage.dry_run else SIZES), "--device", stage.device]
    options = bench_step.arguments([*words, "--repeats", "1" if stage.dry_run else "6"])
    stage.put(
        "sizes", {name: getattr(options, name) for name in ("hidden", "layers", "vocabulary", "completions", "tokens")}
    )

    def measure(mode: str) -> None:
        steps = bench_step.MODES[mode][0]
        directory = stage.work / mode
        directory.mkdir()
        row = bench_step.row_of(bench_step.alternate(options, steps, True, str(directory)), mode, "given")
        if stage.device == "cuda":
            import torch

            row["peak_memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
        stage.put(mode, row)
        if row["target"] is not None:
            stage.goal(f"time ours/trl, {mode}", row["ratio"], row["target"]["at_most"])

    # off-policy: TRL makes a pass over the old policy, and ours makes no other. on-policy: ours adds one.
    for mode in ("off-policy", "on-policy"):
        stage.attempt(mode, lambda mode=mode: measure(mode))
        if stage.device == "cuda":
            import gc

            import torch

            gc.collect()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
    return stage.finish()


if __name__ == "__main__":
    raise SystemExit(main())
