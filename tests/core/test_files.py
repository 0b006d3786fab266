import shutil
import subprocess
import sys

import pytest
import torch
from helpers.assertions import refuses

from tmapdiff._core.files import list_visible, remove_folder, written_beside
from tmapdiff.errors import ArgumentError, FileError


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("made", [["a1", "a01", "a2", "a10"], ["a10", "a2", "a01", "a1"]])
def test_files_are_in_natural_order_however_they_were_made(tmp_path, made):
    for name in made:
        (tmp_path / name).touch()
    assert [path.name for path in list_visible(tmp_path)] == ["a01", "a1", "a2", "a10"]


def test_file_appears_when_the_block_succeeds(tmp_path):
    target = tmp_path / "deep" / "file.txt"
    with written_beside(target) as new:
        new.write_text("new")
        assert not target.exists()
    assert target.read_text() == "new"
    with written_beside(target) as new:
        new.write_text("newer")
        assert target.read_text() == "new"
    assert target.read_text() == "newer"
    assert names(tmp_path / "deep") == ["file.txt"]


def test_folder_appears_whole_and_one_that_exists_keeps_its_files(tmp_path):
    target = tmp_path / "folder"
    for content in ("old", "new"):
        with written_beside(target) as new:
            (new / "sub").mkdir(parents=True)
            (new / "sub" / "a.txt").write_text(content)
        assert (target / "sub" / "a.txt").read_text() == content
        (target / "mine.txt").write_text("kept")
    assert names(target) == ["mine.txt", "sub"]
    assert (target / "mine.txt").read_text() == "kept"
    assert names(tmp_path) == ["folder"]


@pytest.mark.parametrize("error", [ArgumentError("no"), KeyError("no"), KeyboardInterrupt()])
def test_failure_leaves_everything_as_it_was(tmp_path, error):
    target = tmp_path / "file.txt"
    target.write_text("old")

    def fail_half_way():
        with written_beside(target) as new:
            new.write_text("half")
            raise error

    with pytest.raises(type(error)):
        fail_half_way()
    assert target.read_text() == "old"
    assert names(tmp_path) == ["file.txt"]


def test_write_errors_of_any_kind_are_one_line(tmp_path):
    target = tmp_path / "file.txt"
    with (
        refuses(FileError, f"cannot write {target}: No space left on device."),
        written_beside(target),
    ):
        raise OSError(28, "No space left on device")
    stream = "[enforce fail] . PytorchStreamWriter failed writing file data/1: file write failed\nx"
    with refuses(FileError, f"cannot write {target}: [enforce"), written_beside(target):
        raise RuntimeError(stream)
    with pytest.raises(RuntimeError, match=r"^shapes"), written_beside(target):
        raise RuntimeError("shapes do not match")
    with refuses(FileError, "already worded."), written_beside(target):
        raise FileError("already worded.")
    assert names(tmp_path) == []


def test_place_under_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for target in (tmp_path / "file" / "a.txt", tmp_path / "file" / "deep" / "a.txt"):
        with refuses(FileError, f"cannot write {target}: Not a directory."), written_beside(target):
            pass


def test_block_that_writes_nothing_is_an_error(tmp_path):
    target = tmp_path / "file.txt"
    with refuses(FileError, f"cannot write {target}: No such file"), written_beside(target):
        torch.zeros(1)


def test_a_folder_is_removed_with_what_an_earlier_try_left(tmp_path):
    for folder in ("run", ".run.removed"):
        (tmp_path / folder / "inner").mkdir(parents=True)
        (tmp_path / folder / "inner" / "file").touch()
    remove_folder(tmp_path / "run")
    assert names(tmp_path) == []
    remove_folder(tmp_path / "run")


def test_durable_files_and_folders_are_the_same(tmp_path):
    for name in ("file", "folder"):
        with written_beside(tmp_path / name, durable=True) as new:
            if name == "folder":
                (new / "deep").mkdir(parents=True)
                new = new / "deep" / "file"
            new.write_text("content")
    assert (tmp_path / "file").read_text() == "content"
    assert (tmp_path / "folder" / "deep" / "file").read_text() == "content"
    assert names(tmp_path) == ["file", "folder"]


@pytest.mark.process
@pytest.mark.skipif(sys.platform != "linux", reason="needs strace's kernel")
@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
@pytest.mark.process
def test_durable_files_are_on_the_disk_before_they_are_renamed(tmp_path):
    code = (
        "import sys; from tmapdiff._core.files import written_beside\n"
        "with written_beside(sys.argv[1], durable=True) as new: new.write_text('content')"
    )
    log = tmp_path / "log"
    traced = ["strace", "-f", "-o", log, "-e", "trace=fsync,rename", sys.executable, "-c", code]
    subprocess.run([*traced, tmp_path / "file"], check=True)
    calls = [line.split("(")[0].split()[-1] for line in log.read_text().splitlines() if "(" in line]
    assert calls[-3:] == ["fsync", "rename", "fsync"]
