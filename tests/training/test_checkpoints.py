import os
from pathlib import Path

import pytest
from helpers.assertions import refuses

from tmapdiff.errors import CheckpointError, FileError
from tmapdiff.training.checkpoints import (
    check_checkpoint,
    checkpoint_name,
    clear_up,
    keep_checkpoints,
    list_checkpoints,
    place_in_run,
    write_checkpoint,
)


def write(folder: Path, name: str, content: str = "state") -> Path:
    with write_checkpoint(folder / name) as new:
        (new / "inner").mkdir(parents=True)
        (new / "inner" / "model.bin").write_text(content)
        (new / "random.pkl").write_text("numbers")
    return folder / name


def test_checkpoints_are_listed_in_the_order_of_the_run(tmp_path):
    folder = tmp_path / "checkpoints"
    assert list_checkpoints(folder) == []
    in_order = [(0, 7), (0, 100_000_000), (1, None), (1, 8), (9, None), (10_000, None)]
    names = [checkpoint_name(*one) for one in in_order]
    for name in reversed(names):
        write(folder, name)
    (folder / "epoch-mine").mkdir()
    (folder / ".epoch-0003").mkdir()
    assert [path.name for path in list_checkpoints(folder)] == names
    assert [place_in_run(Path(name)) for name in names] == [(e, s or 0) for e, s in in_order]


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (lambda path: os.truncate(path / "inner" / "model.bin", 2), "another inner/model.bin"),
        (lambda path: (path / "random.pkl").write_text("numbesr"), "another random.pkl"),
        (lambda path: (path / "random.pkl").unlink(), "unreadable ones: random.pkl: No such file"),
        (lambda path: (path / "digests.json").unlink(), "unreadable ones: digests.json: No such"),
        (lambda path: (path / "digests.json").write_text("{"), "unreadable ones: digests.json: "),
        (lambda path: (path / "digests.json").write_text("[]"), "unreadable ones: digests.json: "),
    ],
)
def test_damage_is_found_and_named(tmp_path, spoil, text):
    path = write(tmp_path, "epoch-0001")
    check_checkpoint(path)
    spoil(path)
    with refuses(CheckpointError, f"{path}: expected the files that were written, got {text}"):
        check_checkpoint(path)


def test_a_failed_write_leaves_the_others(tmp_path):
    before = write(tmp_path, "epoch-0001")
    with refuses(FileError, f"cannot write {tmp_path / 'epoch-0002'}: "):  # noqa: SIM117
        with write_checkpoint(tmp_path / "epoch-0002") as new:
            new.mkdir()
            (new / "full").write_text("x")
            with open("/dev/full", "w") as full:
                full.write("x")
    assert list_checkpoints(tmp_path) == [before]
    assert [path.name for path in tmp_path.iterdir()] == ["epoch-0001"]


def test_a_checkpoint_is_replaced_as_a_whole(tmp_path):
    (write(tmp_path, "epoch-0001") / "left over").touch()
    with write_checkpoint(tmp_path / "epoch-0001") as new:
        new.mkdir()
        (new / "other.bin").write_text("new")
    files = {path.name for path in (tmp_path / "epoch-0001").iterdir()}
    assert files == {"other.bin", "digests.json"}


def test_what_need_not_stay_is_removed(tmp_path):
    paths = [write(tmp_path, checkpoint_name(epoch)) for epoch in range(4)]
    keep_checkpoints(tmp_path, {paths[1], paths[3]})
    assert list_checkpoints(tmp_path) == [paths[1], paths[3]]
    assert len(list(tmp_path.iterdir())) == 2
    # Left by processes that were killed while writing or removing.
    for name in (".epoch-0002.removed", ".epoch-0004.x8f_k2"):
        (tmp_path / name / "epoch-0004").mkdir(parents=True)
    clear_up(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["epoch-0001", "epoch-0003"]
