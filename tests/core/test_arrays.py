"""Malicious files. Ordinary damage is tested in tests/fuzz."""

import io
import struct
import zipfile

import numpy as np
import pytest
import torch
from helpers.assertions import refuses

from tmapdiff._core.arrays import load_npy, load_npz, load_tensors
from tmapdiff.data import PtFeatureStore
from tmapdiff.errors import FeatureError, FileError, SizeLimitError


class TestNpy:
    @pytest.mark.parametrize("version", [1, 2])
    @pytest.mark.parametrize("order", ["C", "F"])
    def test_reads_as_numpy_does(self, tmp_path, version, order):
        array = np.asarray(np.arange(12, dtype=">f8").reshape(3, 4), order=order)
        with (tmp_path / "A.npy").open("wb") as file:
            np.lib.format.write_array(file, array, version=(version, 0))
        found = load_npy(tmp_path / "A.npy")
        np.testing.assert_array_equal(found, array)
        assert found.dtype == array.dtype

    def test_small_numbers_count_as_the_float32_that_they_become(self, tmp_path, monkeypatch):
        monkeypatch.setenv("TMAPDIFF_MAX_ITEM_BYTES", "399")
        np.save(tmp_path / "A.npy", np.zeros((10, 10), np.int8))
        with refuses(SizeLimitError, "got 400"):
            load_npy(tmp_path / "A.npy")

    @pytest.mark.parametrize(
        ("shape", "size", "kind", "text"),
        [
            ((10**6, 10**6), 0, SizeLimitError, "an array of at most 536,870,912 bytes"),
            ((1000, 10), 39_999, FileError, "it is truncated: it has 39,999 of 40,000 bytes."),
            # NumPy infers a length of -1.
            ((-1, 2), 16, FileError, "a header with the shape (-1, 2)."),
        ],
    )
    def test_headers_that_declare_what_is_not_there(self, tmp_path, shape, size, kind, text):
        path = tmp_path / "A.npy"
        with path.open("wb") as file:
            header = {"descr": "<f4", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_2_0(file, header)
            file.write(bytes(size))
        with refuses(kind, text):
            load_npy(path)

    def test_a_header_that_does_not_end(self, tmp_path):
        # Python's tokenizer raises its own error for that.
        path = tmp_path / "A.npy"
        header = b"{'descr': '<f4', 'shape': ((2, 2), 'fortran_order': False"
        path.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header)
        with refuses(FileError, "cannot read"):
            load_npy(path)

    def test_columns_with_other_names(self, tmp_path):
        array = np.zeros(2, [("\N{GREEK SMALL LETTER ALPHA}", "f4")])
        with pytest.warns(UserWarning, match="format 3"):
            np.save(tmp_path / "A.npy", array)
        with refuses(FeatureError, "expected an array of numbers, got npy version (3, 0)."):
            load_npy(tmp_path / "A.npy")


class TestNpz:
    def test_reads_as_numpy_does(self, tmp_path):
        array = np.arange(12.0).reshape(3, 4)
        for save in (np.savez, np.savez_compressed):
            save(tmp_path / "A.npz", features=array)
            np.testing.assert_array_equal(load_npz(tmp_path / "A.npz", "features"), array)

    def test_what_a_member_declares_is_all_that_is_unpacked(self, tmp_path, monkeypatch):
        monkeypatch.setenv("TMAPDIFF_MAX_ITEM_BYTES", "100000")
        path = tmp_path / "A.npz"
        np.savez_compressed(path, features=np.zeros((1000, 1000), np.float32))
        with refuses(SizeLimitError, "an array 'features' of at most 100,000 bytes, got 4,000,128"):
            load_npz(path, "features")
        content = path.read_bytes()
        # The member declares a false, small size.
        lie = content.replace(struct.pack("<I", 4_000_128), struct.pack("<I", 90_000))
        assert lie != content
        path.write_bytes(lie)
        with refuses(FileError, "cannot read"):
            load_npz(path, "features")

    def test_an_encrypted_member(self, tmp_path):
        path = tmp_path / "A.npz"
        np.savez(path, features=np.zeros((2, 2)))
        content = bytearray(path.read_bytes())
        for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
            content[content.index(signature) + offset] |= 1
        path.write_bytes(content)
        with refuses(FileError, "encrypted"):
            load_npz(path, "features")


def saved(content):
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def rewritten(content, change, compression=zipfile.ZIP_STORED):
    target = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(content)) as source,
        zipfile.ZipFile(target, "w", compression) as new,
    ):
        for info in source.infolist():
            new.writestr(info.filename, change(info.filename, source.read(info)))
    return target.getvalue()


class TestTensors:
    def test_a_tensor_that_says_more_than_its_file_has(self, tmp_path):
        def more(name, content):
            if not name.endswith("data.pkl"):
                return content
            changed = content.replace(b"K\x08t", b"J\x00\x00\x10\x00t")
            changed = changed.replace(b"K\x02K\x04\x86", b"J\x00\x00\x10\x00K\x01\x86")
            assert changed != content
            return changed

        path = tmp_path / "A.pt"
        path.write_bytes(rewritten(saved(torch.arange(8.0).reshape(2, 4)), more))
        # Rejected by torch or by us: old releases read out of bounds.
        with refuses(FileError, "cannot read"):
            load_tensors(path)

    def test_archives_are_not_unpacked(self, tmp_path):
        path = tmp_path / "A.pt"
        zeros = saved(torch.zeros(1000, 100))
        path.write_bytes(rewritten(zeros, lambda _, content: content, zipfile.ZIP_DEFLATED))
        with refuses(FileError, "its part 'archive/data.pkl' is compressed."):
            load_tensors(path)

    def test_files_of_old_releases(self, tmp_path):
        path = tmp_path / "A.pt"
        torch.save({"a": torch.ones(2)}, path, _use_new_zipfile_serialization=False)
        assert load_tensors(path)["a"].tolist() == [1, 1]
        content = path.read_bytes()
        # A string that declares two gigabytes, which are not allocated.
        place = content.index(b"X\x10\x00\x00\x00protocol_version")
        path.write_bytes(content[: place + 1] + b"\xff\xff\xff\x7f" + content[place + 5 :])
        with refuses(FileError, "cannot read"):
            load_tensors(path)

    def test_one_number_a_trillion_times(self, tmp_path):
        torch.save(torch.zeros(1).expand(10**6, 10**6), tmp_path / "A.pt")
        with refuses(
            SizeLimitError, "a tensor of at most 536,870,912 bytes, got 4,000,000,000,000"
        ):
            PtFeatureStore(tmp_path)

    @pytest.mark.filterwarnings("ignore:Validating sparse tensor invariants")
    @pytest.mark.parametrize(
        ("tensor", "kind"),
        [
            (lambda: torch.eye(3).to_sparse(), "torch.sparse_coo of torch.float32 on cpu"),
            (lambda: torch.zeros(3, 3, device="meta"), "torch.strided of torch.float32 on meta"),
        ],
    )
    def test_tensors_without_numbers_in_rows(self, tmp_path, tensor, kind):
        torch.save(tensor(), tmp_path / "A.pt")
        with refuses(FeatureError, f"expected a dense tensor of numbers, got {kind}."):
            PtFeatureStore(tmp_path)

    def test_views_are_what_they_show(self, tmp_path):
        tensor = torch.arange(12.0).reshape(3, 4)
        torch.save(torch.view_as_complex(tensor.reshape(3, 2, 2)).conj().imag, tmp_path / "A.pt")
        assert PtFeatureStore(tmp_path)["A"].tolist() == (-tensor[:, 1::2]).tolist()
