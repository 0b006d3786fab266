import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState

from tmapdiff import PRESETS, ActionTimelineFeatures, MomentDataset, Trainer, Vocabulary
from tmapdiff.data import SyntheticActivities
from tmapdiff.errors import FileError
from tmapdiff.training import TrainingConfig


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
    subprocess.run(["umount", str(place)], check=True)


def test_saving_a_model_leaves_nothing_half_written(small_disk):
    model = PRESETS["tiny"].build(vocabulary_size=100, clip_channels=256)
    with pytest.raises(FileError, match=r"^cannot write .*model: [^\n]*No space left on device"):
        model.save_pretrained(small_disk / "model")
    assert not any(small_disk.iterdir())


def test_checkpoint_leaves_nothing_half_written(small_disk):
    AcceleratorState._reset_state(reset_partial_state=True)
    data = SyntheticActivities(num_videos=2)
    store = ActionTimelineFeatures(data.videos, num_classes=data.num_classes)
    vocabulary = Vocabulary.from_sentences(item.query for item in data.annotations)
    dataset = MomentDataset(data.annotations, store, vocabulary, num_clips=32)
    model = PRESETS["tiny"].build(vocabulary_size=len(vocabulary), clip_channels=256)
    config = TrainingConfig(epochs=1, batch_size=8)
    trainer = Trainer(model, dataset, config, small_disk, device="cpu", show_progress=False)
    with pytest.raises(FileError, match=r"^cannot write .*epoch-0001: [^\n]*No space left"):
        trainer.train()
    assert not any((small_disk / "checkpoints").iterdir())
