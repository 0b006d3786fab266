"""Attributes of HDF5 files are read in a process that may hang, crash and take no memory."""

import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from helpers.assertions import refuses
from helpers.processes import start_program

import tmapdiff
from tmapdiff.conversion import convert_features
from tmapdiff.data import _hdf5_attributes
from tmapdiff.errors import FileError, SizeLimitError
from tmapdiff.video import FeatureStoreWriter


def write_store(path: Path, **attributes) -> Path:
    with h5py.File(path, "w") as file:
        file["A"] = np.ones((3, 4), np.float32)
        file.create_group("B")["c3d"] = np.ones((2, 4), np.float32)
        file["A"].attrs.update({"source": "A.mp4", "duration": 1.5})
        file["B/c3d"].attrs["duration"] = 1
        file.attrs.update({"seconds_per_feature": 0.5, **attributes})
    return path


def damage_heap(path: Path) -> Path:
    """Let the free space at the end of the heap of texts have no size: HDF5 never gets past it."""
    content = bytearray(path.read_bytes())
    heap = content.index(b"GCOL")
    place = heap + 16
    while (size := struct.unpack_from("<Q", content, place + 8)[0]) and content[place]:
        place += 16 + -(-size // 8) * 8
    struct.pack_into("<Q", content, place + 8, 0)
    path.write_bytes(content)
    return path


@pytest.fixture
def damaged(tmp_path) -> Path:
    return damage_heap(write_store(tmp_path / "features.h5", text="resnet"))


def test_all_that_attributes_may_be(tmp_path):
    path = write_store(
        tmp_path / "features.h5",
        text="r\u00e9s",
        fixed=np.bytes_(b"vgg"),
        numbers=np.array([1.5, 2.0], np.float32),
        texts=np.array(["a", "b"], object),
        flag=True,
        big=np.int64(2**60),
        none=h5py.Empty("f4"),
    )
    found = tmapdiff.open_feature_store(path).attributes
    assert found.pop("none").startswith("Empty")
    assert found == {
        "seconds_per_feature": 0.5,
        "text": "r\u00e9s",
        "fixed": "vgg",
        "numbers": [1.5, 2.0],
        "texts": ["a", "b"],
        "flag": True,
        "big": 2**60,
    }


def test_only_what_needs_it_is_read_elsewhere(tmp_path, monkeypatch):
    started = []
    start = _hdf5_attributes.AttributeReader._start

    def note(reader):
        started.append(reader.path)
        return start(reader)

    monkeypatch.setattr(_hdf5_attributes.AttributeReader, "_start", note)
    path = write_store(tmp_path / "features.h5")
    store = tmapdiff.open_feature_store(path)
    assert store.attributes == {"seconds_per_feature": 0.5}
    assert store.attributes_of("B") == {"duration": 1}
    assert not started
    for _ in range(3):
        assert store.attributes_of("A") == {"source": "A.mp4", "duration": 1.5}
    assert started == [path]


def test_a_damaged_heap_keeps_a_process_for_ever(damaged):
    read = f"import h5py; file = h5py.File({str(damaged)!r}); print(flush=True); file.attrs['text']"
    process = start_program([sys.executable, "-c", read], stdout=subprocess.PIPE)
    process.stdout.readline()
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(1)
    process.kill()
    process.wait()


def test_what_cannot_be_read_is_told_soon(damaged, monkeypatch):
    monkeypatch.setattr(_hdf5_attributes, "SECONDS", 0.3)
    told = f"cannot read {damaged} as HDF5: its attributes were not read in 0.3 seconds."
    store = tmapdiff.open_feature_store(damaged)
    assert store["A"].shape == (3, 4)
    for _ in range(100):  # told at once, but for the first
        with refuses(FileError, told):
            store.attributes_of("A")
    with refuses(FileError, told):
        _ = store.attributes
    with refuses(FileError, told), FeatureStoreWriter(damaged, {"text": "resnet"}):
        pass
    # What needs no heap is still read.
    assert store.attributes_of("B") == {"duration": 1}
    with refuses(FileError, told):
        convert_features(damaged, damaged.with_suffix(".npy"))


@pytest.mark.skipif(sys.platform == "win32", reason="no such signal")
def test_a_crash_is_told(tmp_path):
    path = write_store(tmp_path / "features.h5", model="resnet")
    store = tmapdiff.open_feature_store(path)
    assert store.attributes["model"] == "resnet"
    os.kill(store._attributes._process.pid, signal.SIGSEGV)
    with refuses(FileError, f"cannot read {path} as HDF5: HDF5 crashed at its attributes."):
        _ = store.attributes
    assert tmapdiff.open_feature_store(path).attributes["model"] == "resnet"


ASKING = """
import os, sys, threading, time, tmapdiff
from tmapdiff.data import _hdf5_attributes
_hdf5_attributes.SECONDS = 1.0
store = tmapdiff.open_feature_store(sys.argv[1])
threading.Thread(target=lambda: store.attributes, daemon=True).start()
while store._attributes._process is None:
    time.sleep(0.01)
print(store._attributes._process.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="no /proc")
def test_it_outlives_a_killed_reader_for_a_while_only(damaged):
    command = [sys.executable, "-c", ASKING, str(damaged)]
    process = start_program(command, stdout=subprocess.PIPE)
    pid = int(process.stdout.readline())
    process.kill()
    process.wait()
    until = time.monotonic() + 30
    while Path(f"/proc/{pid}").exists() and "(Z)" not in Path(f"/proc/{pid}/stat").read_text():
        assert time.monotonic() < until
        time.sleep(0.05)


def test_attributes_that_take_too_much(tmp_path, monkeypatch):
    path = write_store(tmp_path / "features.h5", model="x" * 60_000)
    monkeypatch.setenv("TMAPDIFF_MAX_ITEM_BYTES", str(24 * 50_000))
    expected = f"{path}: expected attributes of at most 1,200,000 bytes, got 1,200,024."
    with pytest.raises(SizeLimitError) as caught:
        _ = tmapdiff.open_feature_store(path).attributes
    assert str(caught.value).startswith(expected)
    numbers = write_store(tmp_path / "numbers.h5", numbers=np.zeros(8000))
    monkeypatch.setenv("TMAPDIFF_MAX_ITEM_BYTES", str(24 * 20_000))
    with refuses(
        FileError, f"cannot read {numbers} as HDF5: the attribute 'numbers' is too large."
    ):
        _ = tmapdiff.open_feature_store(numbers).attributes


def test_modules_of_the_folder_that_one_is_in_are_not_imported(tmp_path, monkeypatch):
    path = write_store(tmp_path / "features.h5", model="resnet")
    for name in ("h5py", "json", "numpy"):
        (tmp_path / f"{name}.py").write_text("open('came', 'w')")
    monkeypatch.chdir(tmp_path)
    assert tmapdiff.open_feature_store(path).attributes["model"] == "resnet"
    assert not (tmp_path / "came").exists()
