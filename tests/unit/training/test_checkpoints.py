from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from entropy_rft.training.checkpoints import (
    CheckpointKeeper,
    SameOrder,
    checkpoint_to_resume,
    checkpoints,
    flaw,
    last_complete,
    mark_complete,
    put_aside,
    resumed_step,
)
from entropy_rft.training.run_directory import RunDirectory


def make(directory: Path, step: int, marked: bool = True) -> Path:
    """A checkpoint as one process writes it."""
    checkpoint = directory / f"checkpoint-{step}"
    checkpoint.mkdir(parents=True)
    save_file({"weight": torch.ones(4)}, checkpoint / "model.safetensors")
    torch.save({"state": torch.ones(3)}, checkpoint / "optimizer.pt")
    torch.save({}, checkpoint / "rng_state.pth")
    (checkpoint / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    if marked:
        mark_complete(checkpoint)
    return checkpoint


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_which_checkpoint_is_resumed(tmp_path: Path) -> None:
    assert checkpoint_to_resume(None, str(tmp_path)) is None
    assert checkpoint_to_resume("false", str(tmp_path)) is None
    assert checkpoint_to_resume("auto", str(tmp_path / "nowhere")) is None
    assert checkpoint_to_resume("auto", str(tmp_path)) is None
    with pytest.raises(ValueError, match="holds no checkpoint"):
        checkpoint_to_resume("true", str(tmp_path))
    with pytest.raises(ValueError, match="is not a checkpoint directory"):
        checkpoint_to_resume(str(tmp_path), str(tmp_path))
    for step in (9, 10):
        make(tmp_path, step)
    assert checkpoint_to_resume("auto", str(tmp_path)) == tmp_path / "checkpoint-10"
    assert checkpoint_to_resume("True", str(tmp_path)) == tmp_path / "checkpoint-10"
    assert checkpoint_to_resume(str(tmp_path / "checkpoint-9"), "") == tmp_path / "checkpoint-9"
    cut(tmp_path / "checkpoint-10" / "optimizer.pt")
    assert checkpoint_to_resume("auto", str(tmp_path)) == tmp_path / "checkpoint-9"
    with pytest.raises(ValueError, match=r"checkpoint-10' is incomplete: optimizer.pt has \d+ bytes instead of \d+"):
        checkpoint_to_resume(str(tmp_path / "checkpoint-10"), "")
    (tmp_path / "checkpoint-9" / "model.safetensors").unlink()
    assert checkpoint_to_resume("auto", str(tmp_path)) is None
    with pytest.raises(ValueError, match=r"no complete checkpoint \(checkpoint-10 is incomplete: optimizer.pt has"):
        checkpoint_to_resume("true", str(tmp_path))


def test_the_marker_covers_folders_and_replaces_an_earlier_one(tmp_path: Path) -> None:
    checkpoint = make(tmp_path, 3)
    (checkpoint / "global_step3").mkdir()
    (checkpoint / "global_step3" / "part.pt").write_bytes(b"0123")
    mark_complete(checkpoint)
    assert set(json.loads((checkpoint / "complete.json").read_text())["files"]) == {
        *("model.safetensors", "optimizer.pt", "rng_state.pth", "trainer_state.json", "global_step3/part.pt"),
    }
    assert flaw(checkpoint) is None
    (checkpoint / "global_step3" / "part.pt").unlink()
    assert flaw(checkpoint) == "global_step3/part.pt is missing"
    (checkpoint / "complete.json").write_text("{")
    assert flaw(checkpoint) == "complete.json cannot be read"


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "rng_state.pth", "trainer_state.json"])
def test_without_a_marker_the_files_are_judged(name: str, tmp_path: Path) -> None:
    checkpoint = make(tmp_path, 3, marked=False)
    assert flaw(checkpoint) is None
    cut(checkpoint / name)
    assert (flaw(checkpoint) or "").startswith(name)


def test_without_a_marker_something_must_be_there(tmp_path: Path) -> None:
    checkpoint = make(tmp_path, 3, marked=False)
    (checkpoint / "model.safetensors").rename(checkpoint / "model-00001-of-00002.safetensors")
    index = checkpoint / "model.safetensors.index.json"
    second = "model-00002-of-00002.safetensors"
    index.write_text(json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors", "b": second}}))
    assert flaw(checkpoint) == f"{second} is missing"
    index.unlink()
    (checkpoint / "latest").write_text("global_step3")
    assert flaw(checkpoint) == "global_step3 is missing"
    (checkpoint / "latest").unlink()
    (checkpoint / "model-00001-of-00002.safetensors").unlink()
    assert flaw(checkpoint) == "model.safetensors is missing"
    (checkpoint / "trainer_state.json").unlink()
    assert flaw(checkpoint) == "trainer_state.json is missing"


def test_a_run_that_promises_markers_is_taken_by_its_word(tmp_path: Path) -> None:
    earlier, later = make(tmp_path, 3, marked=False), make(tmp_path, 4, marked=False)
    assert last_complete(tmp_path) == later
    assert put_aside(tmp_path, 4) == []  # a run goes on there: from now on they are marked
    make(tmp_path, 5, marked=False)
    RunDirectory(tmp_path).describe({}, seed=0, command=[], device="cpu", name="a run")
    assert flaw(tmp_path / "checkpoint-5") == "complete.json, which is written last, is missing"
    assert last_complete(tmp_path) == later
    assert flaw(earlier) is None


def test_what_would_mix_with_the_new_files_is_put_aside(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        make(tmp_path, step)
    cut(tmp_path / "checkpoint-4" / "optimizer.pt")
    first, second = put_aside(tmp_path, 2)
    assert first == "checkpoint-3 is after step 2, from which this run resumes; it is now superseded-checkpoint-3"
    assert second.startswith("checkpoint-4 is incomplete (optimizer.pt has ")
    assert names(tmp_path) == ["checkpoint-1", "checkpoint-2", "incomplete-checkpoint-4", "superseded-checkpoint-3"]
    assert resumed_step(tmp_path / "superseded-checkpoint-3") == 3
    assert resumed_step(None) == 0


def save(keeper: CheckpointKeeper, directory: Path, step: int, best: Path | None = None) -> None:
    make(directory, step, marked=False)
    keeper.on_save(
        SimpleNamespace(output_dir=str(directory), should_save=True, world_size=1),
        SimpleNamespace(global_step=step, best_model_checkpoint=None if best is None else str(best)),
        SimpleNamespace(),
    )


def test_older_checkpoints_go_only_when_the_new_one_is_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper = CheckpointKeeper(2)
    for step in (1, 2, 3):
        save(keeper, tmp_path, step)
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-2", "checkpoint-3"]
    (tmp_path / "incomplete-checkpoint-4").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr("entropy_rft.training.checkpoints.mark_complete", lambda path: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            save(keeper, tmp_path, 4)
    assert names(tmp_path) == ["checkpoint-2", "checkpoint-3", "checkpoint-4", "incomplete-checkpoint-4"]
    save(keeper, tmp_path, 5, best=tmp_path / "checkpoint-2")
    assert names(tmp_path) == ["checkpoint-2", "checkpoint-5"]
    save(CheckpointKeeper(None), tmp_path, 6)
    assert names(tmp_path) == ["checkpoint-2", "checkpoint-5", "checkpoint-6"]


def test_a_half_deleted_checkpoint_is_incomplete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, 1)
    monkeypatch.setattr("entropy_rft.training.checkpoints.shutil.rmtree", lambda *args, **kwargs: None)
    RunDirectory(tmp_path).describe({}, seed=0, command=[], device="cpu", name="a run")
    save(CheckpointKeeper(1), tmp_path, 2)
    assert flaw(tmp_path / "checkpoint-1") is not None
    assert last_complete(tmp_path) == tmp_path / "checkpoint-2"


def test_a_resumed_run_sees_the_order_of_its_epoch() -> None:
    from torch.utils.data import DataLoader
    from trl.trainer.utils import RepeatSampler

    def loader() -> DataLoader:
        return DataLoader(range(8), batch_size=4, sampler=RepeatSampler(range(8), mini_repeat_count=1, seed=3))

    def order(loader: DataLoader) -> list[int]:
        return torch.cat(list(loader)).tolist()

    straight = loader()
    epochs = [order(straight) for _ in range(3)]
    assert epochs[0] != epochs[2]
    for epoch, expected in ((0.0, epochs[0]), (0.75, epochs[0]), (1.0, epochs[1]), (2.5, epochs[2])):
        resumed = loader()
        SameOrder().on_train_begin(None, SimpleNamespace(epoch=epoch), None, train_dataloader=resumed)
        assert order(resumed) == expected


def test_a_checkpoint_of_weights_alone_is_no_place_to_go_on(tmp_path: Path) -> None:
    checkpoint = make(tmp_path, 3, marked=False)
    (checkpoint / "optimizer.pt").unlink()
    mark_complete(checkpoint)
    for requested in ("auto", "true", str(checkpoint)):
        with pytest.raises(ValueError, match=f"holds no optimizer .*--model_name_or_path {checkpoint}"):
            checkpoint_to_resume(requested, str(tmp_path))


def test_superseded_checkpoints_are_all_kept(tmp_path: Path) -> None:
    for _ in range(3):
        make(tmp_path, 5)
        put_aside(tmp_path, 2)
    assert names(tmp_path) == [f"superseded-checkpoint-5{end}" for end in ("", ".1", ".2")]


def test_a_part_of_another_machine_that_is_not_here_is_no_complete_checkpoint(tmp_path: Path) -> None:
    checkpoint = make(tmp_path, 1, marked=False)
    for rank in range(2):
        (checkpoint / f"rng_state_{rank}.pth").touch()
    args = SimpleNamespace(
        should_save=True, output_dir=str(tmp_path), world_size=4, save_only_model=False, save_on_each_node=False
    )
    state = SimpleNamespace(global_step=1, best_model_checkpoint=None)
    with pytest.raises(RuntimeError, match=r"only 2 of 4 processes .* all machines share"):
        CheckpointKeeper(None).on_save(args, state, None)
    assert not (checkpoint / "complete.json").exists()
    args.world_size = 2
    CheckpointKeeper(None).on_save(args, state, None)
    assert flaw(checkpoint) is None
