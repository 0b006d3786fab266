"""HDF5 files that were made to do harm. Ordinary damage is the fuzzer's, tests/fuzz."""

import zlib

import h5py
import numpy as np
import pytest
from helpers.assertions import refuses

from tmapdiff.data import HDF5FeatureStore
from tmapdiff.errors import FeatureError, FileError, SizeLimitError

ARRAY = np.arange(12, dtype=np.float32).reshape(3, 4)


@pytest.fixture
def path(tmp_path):
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["A"] = ARRAY
    with h5py.File(tmp_path / "rgb.h5", "w") as file:
        file["0"] = ARRAY
    return tmp_path / "rgb.h5"


@pytest.mark.parametrize("kind", ["dataset", "group"])
def test_links_to_other_files_are_not_followed(path, kind):
    with h5py.File(path, "a") as file:
        link = h5py.ExternalLink("secret.h5", "A")
        if kind == "dataset":
            file["A"] = link
        else:
            file.create_group("A")["features"] = link
        assert file["A"] is not None  # h5py follows it
    with refuses(FeatureError, "expected features in the file itself, got a link to another file."):
        HDF5FeatureStore(path)["A"]


def test_links_inside_of_the_file_are_followed(path):
    with h5py.File(path, "a") as file:
        file["A"] = h5py.SoftLink("/0")
    assert HDF5FeatureStore(path)["A"].tolist() == ARRAY.tolist()


def test_bytes_of_any_file_are_not_features(path, tmp_path):
    (tmp_path / "passwords").write_bytes(bytes(48))
    with h5py.File(path, "a") as file:
        place = [(str(tmp_path / "passwords"), 0, 48)]
        file.create_dataset("A", (3, 4), "f4", external=place)
    with refuses(FeatureError, "expected features in the file itself, got some in other files."):
        HDF5FeatureStore(path)["A"]


def test_virtual_datasets_are_not_features(path):
    with h5py.File(path, "a") as file:
        layout = h5py.VirtualLayout((3, 4), "f4")
        layout[:] = h5py.VirtualSource("secret.h5", "A", shape=(3, 4))
        file.create_virtual_dataset("A", layout)
    with refuses(FeatureError, "expected features in the file itself, got some in other files."):
        HDF5FeatureStore(path)["A"]


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
    def write(self, path, packed, shape=(512, 512), **options):
        options = {"compression": "gzip", **options}
        with h5py.File(path, "a") as file:
            dataset = file.create_dataset("A", shape, "f4", chunks=shape, **options)
            dataset.id.write_direct_chunk((0, 0), packed)

    def test_a_chunk_that_is_more_than_it_declares(self, path, monkeypatch):
        monkeypatch.setenv("TMAPDIFF_MAX_ITEM_BYTES", str(2**20))
        self.write(path, zlib.compress(bytes(2**24)))
        with refuses(
            SizeLimitError, "a chunk that is unpacked of at most 1,048,576 bytes, got 16,"
        ):
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

    def test_large_chunks_of_lzf(self, path, monkeypatch):
        monkeypatch.setenv("TMAPDIFF_MAX_ITEM_BYTES", str(2**20))
        self.write(path, bytes(2**19), compression="lzf")
        with refuses(SizeLimitError, "a chunk that is unpacked of at most 1,048,576 bytes"):
            HDF5FeatureStore(path)["A"]

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


@pytest.mark.parametrize("rate", [[1.0, 2.0], "0.5", h5py.Empty("f4")])
def test_a_rate_that_is_no_number(path, rate):
    with h5py.File(path, "a") as file:
        file.attrs["seconds_per_feature"] = rate
    with refuses(FeatureError, "rgb.h5: expected seconds_per_feature to be a number, got "):
        HDF5FeatureStore(path)


def test_texts_are_read_when_asked_for_only(path):
    with h5py.File(path, "a") as file:
        file.attrs["model"] = "a text of no fixed length"
        file.attrs["seconds_per_feature"] = 0.5
    content = path.read_bytes()
    # Of the global heap, where HDF5 has such texts.
    path.write_bytes(content.replace(b"GCOL", b"XXXX"))
    store = HDF5FeatureStore(path)
    assert store["0"].tolist() == ARRAY.tolist()
    assert store.seconds_per_feature == 0.5
    with refuses(FileError, "cannot read"):
        _ = store.attributes
