import json
import os
import sys
import time
from multiprocessing import Barrier, Event, Process, Queue
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.assertions import refuses
from helpers.processes import SECONDS, forks

from tmapdiff import open_feature_store
from tmapdiff.errors import FeatureError, FileError, MissingDependencyError
from tmapdiff.video import FeatureStoreWriter, store_writer

h5py = pytest.importorskip("h5py")

SHARED = {"model": "timm x", "fps": 2.0, "seconds_per_feature": 0.5}


def refused(kind, text, path, attributes=SHARED):
    with refuses(kind, text), FeatureStoreWriter(path, attributes):
        pass


def visible(folder):
    """Files but the lock, which releases of filelock may leave."""
    return sorted(name for name in os.listdir(folder) if not name.startswith("."))


def array(seed, rows=4):
    return np.random.default_rng(seed).standard_normal((rows, 3)).astype(np.float32)


def test_what_was_written_is_read(tmp_path):
    path = tmp_path / "new" / "a.h5"
    with FeatureStoreWriter(path, SHARED) as store:
        assert "A" not in store
        for seed, name in enumerate(("A", "B c.d", ".hidden")):
            store.write(name, array(seed), {"duration": 2.0, "damage": "none — at all"})
        assert "A" in store
        assert len(store) == 3
        assert not path.exists()
        store.finish()
    assert visible(path.parent) == ["a.h5"]
    found = open_feature_store(path)
    assert found.seconds_per_feature == 0.5
    for seed, name in enumerate(("A", "B c.d", ".hidden")):
        assert torch.equal(found[name], torch.from_numpy(array(seed)))
    with h5py.File(path) as file:
        assert dict(file.attrs) == {**SHARED, "model": b"timm x"}
        assert dict(file["A"].attrs) == {"duration": 2.0, "damage": "none — at all".encode()}


def test_a_file_is_added_to_and_videos_replaced(tmp_path):
    path = tmp_path / "a.h5"
    for round_, names in enumerate((["A", "B"], ["B", "C"])):
        with FeatureStoreWriter(path, SHARED) as store:
            assert len(store) == 2 * round_
            if round_:
                assert store["B"] == {"round": 0}
            for name in names:
                store.write(name, array(ord(name) + round_, 4 + round_), {"round": round_})
            store.finish()
    found = open_feature_store(path)
    assert torch.equal(found["A"], torch.from_numpy(array(ord("A"))))
    assert torch.equal(found["B"], torch.from_numpy(array(ord("B") + 1, 5)))
    assert torch.equal(found["C"], torch.from_numpy(array(ord("C") + 1, 5)))


def test_what_was_not_finished_is_there_for_the_next(tmp_path):
    path = tmp_path / "a.h5"
    with FeatureStoreWriter(path, SHARED) as store:
        store.write("A", array(0), {"duration": 2.0})
    assert not path.exists()
    with FeatureStoreWriter(path, SHARED) as store:
        assert store["A"] == {"duration": 2.0}
        store.finish()
    assert torch.equal(open_feature_store(path)["A"], torch.from_numpy(array(0)))


def test_nothing_written_leaves_nothing(tmp_path):
    with FeatureStoreWriter(tmp_path / "a.h5", SHARED) as store:
        store.finish()
    assert not visible(tmp_path)


def test_other_attributes_are_refused(tmp_path):
    path = tmp_path / "a.h5"
    with FeatureStoreWriter(path, SHARED) as store:
        store.write("A", array(0), {})
        store.finish()
    for name, value in (("model", "timm y"), ("fps", 3.0), ("new", 1)):
        expected = f"expected the features in {path} to have {name} = {value!r}, got "
        refused(FeatureError, expected, path, {**SHARED, name: value})
    assert visible(tmp_path) == ["a.h5"]
    # In parts, too.
    other = tmp_path / "b.h5"
    with FeatureStoreWriter(other, SHARED) as store:
        store.write("A", array(0), {})
    expected = "to have fps = 3.0, got 2.0. Write the new features to another file"
    refused(FeatureError, expected, other, {**SHARED, "fps": 3.0})
    with FeatureStoreWriter(other, SHARED) as store:
        assert "A" in store


def test_foreign_and_broken_files_are_refused(tmp_path):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["A"] = array(0)
    refused(FeatureError, "to have model = 'timm x', got none.", path)
    content = path.read_bytes()
    path.write_bytes(content[:-100])
    refused(FileError, f"cannot read {path} as HDF5: ", path)
    assert path.read_bytes() == content[:-100]
    (tmp_path / "file").write_text("")
    inside = tmp_path / "file" / "a.h5"
    refused(FileError, f"cannot write {inside}.parts: ", inside)
    for number, (make, target) in enumerate(((Path.write_text, ""), (Path.symlink_to, "nowhere"))):
        path = tmp_path / f"in the way {number}.h5"
        make(path.with_name(f"{path.name}.parts"), target)
        began = time.process_time()
        refused(FileError, f"cannot write {path}.parts: ", path)
        assert time.process_time() - began < 0.5  # at once


def _hold(path, entered, leave):
    with FeatureStoreWriter(path, SHARED):
        entered.set()
        leave.wait(SECONDS)


def test_two_writers_are_kept_apart(tmp_path, monkeypatch):
    monkeypatch.setattr(store_writer, "SECONDS_OF_ORPHANS", 0.1)
    path = tmp_path / "a.h5"
    with FeatureStoreWriter(path, SHARED):
        expected = f"expected to be the only process that writes {path}, got another"
        refused(FileError, expected, path)
    with FeatureStoreWriter(path, SHARED):
        pass


@forks
def test_writers_of_two_processes_are_kept_apart(tmp_path):
    store_writer.SECONDS_OF_ORPHANS = 0.1
    path = tmp_path / "a.h5"
    entered, leave = Event(), Event()
    other = Process(target=_hold, args=(path, entered, leave))
    other.start()
    assert entered.wait(SECONDS)
    refused(FileError, f"expected to be the only process that writes {path}, got another", path)
    # One that is killed does not keep others out.
    other.kill()
    other.join(SECONDS)
    with FeatureStoreWriter(path, SHARED):
        pass


def _hold_with_a_worker(path, entered):
    with FeatureStoreWriter(path, SHARED):
        if os.fork() == 0:
            time.sleep(3)
            os._exit(0)
        entered.set()
        time.sleep(30)


@forks
def test_workers_of_a_killed_writer_keep_nobody_out(tmp_path):
    entered = Event()
    writer = Process(target=_hold_with_a_worker, args=(tmp_path / "a.h5", entered))
    writer.start()
    assert entered.wait(SECONDS)
    writer.kill()
    while writer.exitcode is None:  # join would wait for the worker
        time.sleep(0.01)
    with FeatureStoreWriter(tmp_path / "a.h5", SHARED):
        pass


def _write_for_ever(path, first, entered):
    number = first
    while True:
        with FeatureStoreWriter(path, SHARED) as store:
            entered.set()
            for _ in range(20):
                features = np.full((5_000, 3), number, np.float32)
                store.write(f"video{number % 7}", features, {"number": number})
                number += 1
            store.finish()


@forks
def test_killed_at_any_moment(tmp_path):
    path = tmp_path / "a.h5"
    random = np.random.default_rng()
    parts = finished = 0
    for round_ in range(25):
        entered = Event()
        writer = Process(target=_write_for_ever, args=(path, 1000 * round_, entered))
        writer.start()
        if round_ % 5:  # the others may be killed while they read what is there
            assert entered.wait(SECONDS)
        until = time.monotonic() + SECONDS
        while not path.exists() and time.monotonic() < until:
            time.sleep(0.005)  # the first round, till one file is finished
        time.sleep(0.15 * random.random())
        writer.kill()
        writer.join(SECONDS)
        assert writer.exitcode == -9
        if path.exists():
            finished += 1
            with h5py.File(path, "r") as file:
                for name, dataset in file.items():
                    assert name.startswith("video")
                    assert dataset.shape == (5_000, 3)
                    assert (dataset[()] == dataset.attrs["number"]).all()
        # The next takes over what is whole.
        with FeatureStoreWriter(path, SHARED) as store:
            for part in store.parts.glob("*.npz"):
                parts += 1
                with np.load(part) as content:
                    number = json.loads(content["attributes"].item())["number"]
                    assert (content["features"] == number).all()
                assert store[part.stem] == {"number": number}
            assert not [one for one in store.parts.iterdir() if one.is_dir()]
    assert parts
    assert finished


def test_h5py_is_needed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with refuses(MissingDependencyError, "pip install -e '.[video]'"):
        FeatureStoreWriter(tmp_path / "a.h5", SHARED)


@pytest.mark.parametrize("content", ["", "{", "[1]", "\udcff", "null"])
def test_attributes_that_cannot_be_read(tmp_path, content):
    with FeatureStoreWriter(tmp_path / "a.h5", SHARED) as store:
        store.write("video", np.ones((2, 3)), {})
    path = store.parts / "attributes.json"
    path.write_bytes(content.encode(errors="surrogateescape"))
    expected = "attributes.json: expected attributes as JSON, got damaged ones."
    refused(FileError, expected, tmp_path / "a.h5")


def test_damaged_parts_are_dropped(tmp_path):
    with FeatureStoreWriter(tmp_path / "a.h5", SHARED) as store:
        for name in "ABCD":
            store.write(name, np.ones((2, 3)), {})
    content = (store.parts / "A.npz").read_bytes()
    for name, damaged in (("A", content[:-50]), ("B", content[:200]), ("C", b"PK\3\4" * 9)):
        (store.parts / f"{name}.npz").write_bytes(damaged)
    with FeatureStoreWriter(tmp_path / "a.h5", SHARED) as store:
        assert [name for name in "ABCD" if name in store] == ["D"]


def _write_in_turn(path, number, start, tell):
    start.wait(SECONDS)
    done, told = 0, []
    while done < 15:
        try:
            with FeatureStoreWriter(path, SHARED) as store:
                held = path.with_name("held")
                os.close(os.open(held, os.O_CREAT | os.O_EXCL))  # by nobody else
                if done == 0:
                    store.write(f"video{number}", array(number), {})
                    store.finish()
                os.unlink(held)
            done += 1
        except FileError as error:
            told.append(str(error))
        except OSError as error:
            told.append(f"two at once: {error}")
            break
    tell.put(told)


@forks
def test_four_writers_are_one_after_the_other_or_told_of_another(tmp_path):
    """Each leaves, and takes the folder of its parts away, while the others wait for it."""
    store_writer.SECONDS_OF_ORPHANS = 0.1
    path = tmp_path / "a.h5"
    start, tell = Barrier(4), Queue()
    writers = [Process(target=_write_in_turn, args=(path, i, start, tell)) for i in range(4)]
    for writer in writers:
        writer.start()
    told = {text for _ in writers for text in tell.get(timeout=SECONDS)}
    for writer in writers:
        writer.join(SECONDS)
    expected = f"to be the only process that writes {path}, got another one."
    assert told <= {f"FeatureStoreWriter: expected {expected}"}
    with FeatureStoreWriter(path, SHARED) as store:
        assert len(store) == 4
    assert visible(tmp_path) == ["a.h5"]
