"""HDF5 files that were made to do harm. Ordinary damage is the fuzzer's, tests/fuzz."""

import os
import struct
import subprocess
import sys
import zlib

import h5py
import numpy as np
import pytest
from helpers.assertions import refuses
from helpers.processes import start_program

from tmapdiff.data import HDF5FeatureStore
from tmapdiff.errors import FeatureError, MissingFeatureError, SizeLimitError
from tmapdiff.video import FeatureStoreWriter

ARRAY = np.arange(12, dtype=np.float32).reshape(3, 4)


@pytest.fixture
def path(tmp_path):
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["A"] = ARRAY
    with h5py.File(tmp_path / "rgb.h5", "w") as file:
        file["0"] = ARRAY
    return tmp_path / "rgb.h5"


def point_elsewhere(file, kind, other):
    """Let the features of A be those of another file, in a way that HDF5 has."""
    link = h5py.ExternalLink(other, "A")
    if kind == "dataset":
        file["A"] = link
    elif kind == "group":
        file.create_group("A")["features"] = link
    elif kind == "soft link":
        file["link"], file["A"] = link, h5py.SoftLink("/./link")
    elif kind == "path":
        file["link"], file["A"] = h5py.ExternalLink(other, "/"), h5py.SoftLink("/link/A")
    elif kind == "bytes":
        file.create_dataset("A", (3, 4), "f4", external=[(other, 0, 48)])
    else:
        layout = h5py.VirtualLayout((1, 4), "f4", maxshape=(None, 4))
        source = h5py.VirtualSource(other, "A", shape=(1, 4), maxshape=(None, 4))
        layout[0 : h5py.h5s.UNLIMITED] = source[0 : h5py.h5s.UNLIMITED]
        file.create_virtual_dataset("A", layout)


ELSEWHERE = ["dataset", "group", "soft link", "path", "bytes", "virtual"]


@pytest.mark.parametrize("kind", ELSEWHERE)
def test_features_in_other_files_are_refused(path, kind):
    with h5py.File(path, "a") as file:
        point_elsewhere(file, kind, "secret.h5")
        assert file["A"] is not None  # h5py follows it
    told = "expected features in the file itself, got "
    with refuses(FeatureError, told):
        HDF5FeatureStore(path)["A"]
    if kind in ("dataset", "soft link", "path"):
        with refuses(FeatureError, told):
            "A" in HDF5FeatureStore(path)  # noqa: B015
        with refuses(FeatureError, told), FeatureStoreWriter(path, {}):
            pass


@pytest.mark.process
@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes")
def test_other_files_are_not_even_opened(path):
    os.mkfifo(path.with_name("pipe"))  # whoever opens it waits for ever
    for kind in ELSEWHERE:
        with h5py.File(path.with_name(f"{kind}.h5"), "w") as file:
            point_elsewhere(file, kind, "pipe")
    code = (
        "import sys\nfrom tmapdiff.data import HDF5FeatureStore\n"
        "from tmapdiff.errors import FeatureError\n"
        "for path in sys.argv[1:]:\n    try:\n        HDF5FeatureStore(path)\n"
        "    except FeatureError:\n        print(path)"
    )
    files = [str(path.with_name(f"{kind}.h5")) for kind in ELSEWHERE]
    command = [sys.executable, "-c", code, *files]
    assert subprocess.check_output(command, text=True, timeout=60).splitlines() == files


def test_links_inside_of_the_file_are_refused(path):
    with h5py.File(path, "a") as file:
        file["A"] = h5py.SoftLink("/0")
    store = HDF5FeatureStore(path)
    with refuses(FeatureError, "expected features in the file itself, got a link."):
        store["A"]
    assert "none" not in store
    with refuses(MissingFeatureError, "expected features of 'none', got none."):
        store["none"]


@pytest.mark.parametrize(
    ("shape", "chunks", "text"),
    [
        ((10**6, 10**6), (64, 64), "features of at most 536,870,912 bytes, got 4,000,000,000,000."),
        ((3, 4), (20_000, 20_000), "a chunk of features of at most 536,870,912 bytes, got 1,6"),
    ],
)
def test_declared_sizes(path, shape, chunks, text):
    with h5py.File(path, "a") as file:
        file.create_dataset("A", shape, "f4", chunks=chunks, maxshape=(None, None))
    with refuses(SizeLimitError, text, "TMAPDIFF_MAX_ITEM_BYTES"):
        HDF5FeatureStore(path)["A"]


class TestPackedChunks:
    @pytest.mark.parametrize(
        ("packed", "compression"), [(zlib.compress(bytes(2**24)), "gzip"), (bytes(2**19), "lzf")]
    )
    def test_a_chunk_that_is_more_than_it_declares(self, path, monkeypatch, packed, compression):
        monkeypatch.setenv("TMAPDIFF_MAX_ITEM_BYTES", str(2**20))
        with h5py.File(path, "a") as file:
            options = {"chunks": (512, 512), "compression": compression}
            dataset = file.create_dataset("A", (512, 512), "f4", **options)
            dataset.id.write_direct_chunk((0, 0), packed)
        with refuses(SizeLimitError, "an unpacked chunk of at most 1,048,576 bytes, got "):
            HDF5FeatureStore(path)["A"]

    @pytest.mark.parametrize("options", [{}, {"fletcher32": True, "shuffle": True}])
    def test_chunks_that_hardly_shrink_are_no_bombs(self, path, monkeypatch, options):
        # Unpacked at the best of ratios, their bytes would be a hundred times the limit.
        array = np.random.default_rng(0).random((512, 512), np.float32)
        monkeypatch.setenv("TMAPDIFF_MAX_ITEM_BYTES", str(2 * array.nbytes))
        with h5py.File(path, "a") as file:
            del file["0"]
            file.create_dataset("A", data=array, chunks=(512, 512), compression="gzip", **options)
        np.testing.assert_array_equal(HDF5FeatureStore(path)["A"], array)

    def test_packed_twice(self, path):
        with h5py.File(path, "a") as file:
            properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            properties.set_chunk((3, 4))
            properties.set_deflate(9)
            properties.set_deflate(9)
            space = h5py.h5s.create_simple((3, 4))
            h5py.h5d.create(file.id, b"A", h5py.h5t.IEEE_F32LE, space, properties)
        with refuses(FeatureError, "expected features compressed once, got 2 times."):
            HDF5FeatureStore(path)["A"]


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (["some", "text"], "expected features that are real numbers, got dtype object."),
        (h5py.Empty("f4"), "expected features of shape (T, D), got none."),
        (np.dtype("f4"), "expected a dataset, got a datatype."),
        (np.array([1j]), "expected features that are real numbers, got dtype complex128."),
    ],
)
def test_what_is_no_array_of_numbers(path, content, text):
    with h5py.File(path, "a") as file:
        file["A"] = content
    with refuses(FeatureError, text):
        HDF5FeatureStore(path)["A"]


@pytest.mark.parametrize("rate", [[1.0, 2.0], "0.5", np.bytes_(b"0.5"), h5py.Empty("f4")])
def test_a_rate_that_is_no_number(path, rate):
    with h5py.File(path, "a") as file:
        file.attrs["seconds_per_feature"] = rate
    with refuses(FeatureError, "rgb.h5: expected seconds_per_feature to be a number"):
        HDF5FeatureStore(path)


IN_PLACE = {  # as it is written, and as it is read
    "seconds_per_feature": (0.5, 0.5),
    "text": (np.bytes_("r\u00e9s".encode()), "r\u00e9s"),
    "no_utf": (np.bytes_(b"r\xe9s"), "r\ufffds"),
    "nothing": (np.array(b"", "S1"), ""),
    "numbers": (np.array([1.5, 2.0], np.float32), [1.5, 2.0]),
    "texts": (np.array([b"a", b"bcd"]), ["a", "bcd"]),
    "flag": (True, True),
    "big": (np.int64(2**60), 2**60),
}
IN_HEAPS = {
    "model": ("r\u00e9s", "r\u00e9s"),
    "names": (np.array(["a", "b"], object), ["a", "b"]),
    "rows": (np.array([np.arange(2), np.arange(1)], h5py.vlen_dtype("i4")), [[0, 1], [0]]),
}
LEFT_OUT = "got 'model', 'names', 'rows' of variable length. They are left out; `tmapdiff convert`"


@pytest.fixture
def stated(path):
    """A file that says all that attributes may hold, of itself and of a video in a group."""
    with h5py.File(path, "w") as file:
        file["A"] = ARRAY
        file.create_group("B")["c3d"] = ARRAY
        for item in (file, file["B/c3d"]):
            item.attrs.update({name: value for name, (value, _) in IN_PLACE.items()})
    return path


def add_heaps(path):
    with h5py.File(path, "a") as file:
        for item in (file, file["B/c3d"]):
            item.attrs.update({name: value for name, (value, _) in IN_HEAPS.items()})
    return path


def as_read(*tables):
    return {name: read for table in tables for name, (_, read) in table.items()}


def damage_heaps(path):
    """Let the free space at the end of the heaps have no size: HDF5 never gets past it."""
    content = bytearray(path.read_bytes())
    heap = -1
    while (heap := content.find(b"GCOL", heap + 1)) >= 0:
        place = heap + 16
        while (size := struct.unpack_from("<Q", content, place + 8)[0]) and content[place]:
            place += 16 + -(-size // 8) * 8
        struct.pack_into("<Q", content, place + 8, 0)
    path.write_bytes(content)


def test_attributes_in_place_are_read(stated, monkeypatch):
    store = HDF5FeatureStore(stated)
    assert store.attributes == store.attributes_of("B") == as_read(IN_PLACE)
    assert store.attributes_of("A") == {}
    assert store.recover_attributes() == (store.attributes, {"A": {}, "B": as_read(IN_PLACE)})
    monkeypatch.setenv("TMAPDIFF_MAX_ITEM_BYTES", "300")
    with refuses(SizeLimitError, "expected attributes of at most 300 bytes"):
        HDF5FeatureStore(stated)


def test_attributes_in_heaps_are_left_out_with_a_remark(stated):
    add_heaps(stated)
    damage_heaps(stated)  # HDF5 is not asked for them
    with pytest.warns(UserWarning, match=f"rgb.h5: expected attributes of fixed .*{LEFT_OUT}"):
        store = HDF5FeatureStore(stated)
    assert store["B"].tolist() == ARRAY.tolist()
    assert (store.attributes, store.seconds_per_feature) == (as_read(IN_PLACE), 0.5)
    assert store.left_out == ["model", "names", "rows"]
    assert store.attributes_of("B") == as_read(IN_PLACE)
    assert store.attributes_of("A") == {}


@pytest.mark.filterwarnings("ignore:.*They are left out")
def test_what_was_left_out_is_recovered(stated):
    everything = as_read(IN_PLACE, IN_HEAPS)
    found = HDF5FeatureStore(add_heaps(stated)).recover_attributes()
    assert found == (everything, {"A": {}, "B": everything})


@pytest.mark.process
def test_a_damaged_heap_keeps_hdf5_for_ever(stated):
    damage_heaps(add_heaps(stated))
    read = f"import h5py; file = h5py.File({str(stated)!r}); print(flush=True); "
    command = [sys.executable, "-c", f"{read}file.attrs['model']"]
    process = start_program(command, stdout=subprocess.PIPE)
    process.stdout.readline()
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(1)
    process.kill()
    process.wait()


class TestWriting:
    def test_texts_are_written_in_place(self, tmp_path):
        texts = {"model": "r\u00e9s", "none": "", "name": "a\udcff", "long": "\u00e9" * 32_000}
        with FeatureStoreWriter(tmp_path / "a.h5", texts, remarks={"remark": "x\ny"}) as writer:
            writer.write("A", ARRAY, texts)
            writer.finish()
        store = HDF5FeatureStore(tmp_path / "a.h5")
        expected = {**texts, "name": "a\\udcff"}
        assert store.attributes == {**expected, "remark": "x\ny"}
        assert store.attributes_of("A") == expected
        with FeatureStoreWriter(tmp_path / "a.h5", texts) as writer:  # they are the same
            assert writer["A"] == expected

    def test_texts_that_are_too_long_are_refused_before_anything_is_written(self, tmp_path):
        long = {"model": "\u00e9" * 32_001}
        told = "FeatureStoreWriter: expected an attribute 'model' of at most 64,000 bytes, got 64,0"
        for shared, remarks in ((long, {}), ({}, long)):
            with refuses(FeatureError, told):
                FeatureStoreWriter(tmp_path / "a.h5", shared, remarks)
        with FeatureStoreWriter(tmp_path / "a.h5", {}) as writer:
            with refuses(FeatureError, told):
                writer.write("A", ARRAY, long)
            assert "A" not in writer

    def test_files_whose_attributes_are_left_out_are_not_added_to(self, stated):
        add_heaps(stated)
        told = "Convert it to a new file first: tmapdiff convert OLD NEW."
        for said in (({"model": "r\u00e9s"},), ({}, {"model": "r\u00e9s"})):
            with refuses(FeatureError, told), FeatureStoreWriter(stated, *said):
                pass
