import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState
from helpers import crash_run
from helpers.training import before_steps

from tmapdiff import PRESETS
from tmapdiff.errors import FileError


def make_trainer(folder, **changes):
    AcceleratorState._reset_state(reset_partial_state=True)
    return crash_run.make_trainer(folder, **changes)


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("mounting a small disk needs root")
    yield place
    # Lazily, as torch may still have a file open that it could not write.
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def test_saving_a_model_leaves_nothing_half_written(small_disk):
    model = PRESETS["tiny"].build(vocabulary_size=100, clip_channels=256)
    with pytest.raises(FileError, match=r"^cannot write .*model: [^\n]*No space left on device"):
        model.save_pretrained(small_disk / "model")
    assert not any(small_disk.iterdir())


@pytest.mark.train
def test_a_disk_that_fills_leaves_the_last_good_checkpoint(tmp_path, small_disk):
    changes = {"checkpoint_steps": 2, "keep_checkpoints": 1, "epochs": 2}
    whole = make_trainer(tmp_path / "whole", **changes)
    whole.train()
    stuck = make_trainer(small_disk, **changes)

    def fill_at_third_step(_):
        if stuck.progress.step == 3:
            fill(small_disk / "of somebody else", leave=2**16)  # for half of a checkpoint

    before_steps(stuck, fill_at_third_step)
    # torch's message, as the disk fills up in the middle of a file.
    text = r"^cannot write .*epoch-0000-step-00000004: [^\n]*(No space|inline_container)[^\n]*$"
    with pytest.raises(FileError, match=text):
        stuck.train()
    assert [path.name for path in stuck.checkpoints] == ["epoch-0000-step-00000002"]
    assert len(list((small_disk / "checkpoints").iterdir())) == 1
    (small_disk / "of somebody else").unlink()
    resumed = make_trainer(small_disk, **changes).resume()
    assert resumed.progress.step == 2
    resumed.train()
    assert crash_run.outcome(resumed) == crash_run.outcome(whole)


def fill(path: Path, leave: int = 0) -> None:
    with pytest.raises(OSError, match="No space left"), path.open("wb", buffering=0) as file:  # noqa: PT012
        while True:
            file.write(bytes(4096))
    os.truncate(path, path.stat().st_size - leave)


# TensorBoard's writer has its own thread.
@pytest.mark.train
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_disk_that_fills_after_a_checkpoint_loses_no_metrics(small_disk):
    stuck = make_trainer(small_disk, epochs=1)
    close = stuck._close_epoch

    def close_on_full_disk():
        if stuck.progress.epoch:
            fill(small_disk / "of somebody else")
        close()

    stuck._close_epoch = close_on_full_disk
    text = r"^cannot write .*(tensorboard|history.json): [^\n]*No space left"
    with pytest.raises(FileError, match=text):
        stuck.train()
    (small_disk / "of somebody else").unlink()
    resumed = make_trainer(small_disk, epochs=1).resume()
    assert resumed.progress.epoch == 1
    resumed.train()
    assert [entry["epoch"] for entry in resumed.history] == [1]
    assert "mIoU" in resumed.history[0]
