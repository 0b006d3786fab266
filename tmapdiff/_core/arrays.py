"""Arrays and tensors from untrusted files, read without running code and within size limits."""

import io
import math
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from tmapdiff._core.checks import foreign_errors, message
from tmapdiff._core.limits import check_item_bytes
from tmapdiff.errors import FeatureError, FileError

_ZIP = b"PK\x03\x04"  # signature of archives, including torch's
_NPY_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def features_bytes(shape: tuple[int, ...], itemsize: int) -> int:
    """Return the bytes of an array as stored or as float32, whichever is larger."""
    return math.prod(shape) * max(itemsize, 4)


def load_npy(path: Path) -> np.ndarray:
    """Read the array of numbers in a `.npy` file."""
    with foreign_errors(FileError, f"cannot read {path}"), path.open("rb") as file:
        if _begins(path, _ZIP):
            raise ValueError("an archive of arrays, not one array")
        return _read_npy(str(path), file, os.fstat(file.fileno()).st_size)


def load_npz(path: Path, name: str) -> np.ndarray:
    """Read one array of numbers of a `.npz` file."""
    with foreign_errors(FileError, f"cannot read {path}"):
        if _begins(path, np.lib.format.MAGIC_PREFIX):
            raise ValueError("one array, not an archive of arrays")
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            if f"{name}.npy" not in names:
                keys = [one.removesuffix(".npy") for one in names[:5]]
                expected = f"an array with the key {name!r}"
                raise FeatureError(message(str(path), expected, f"the keys {keys}"))
            declared = archive.getinfo(f"{name}.npy")
            # zipfile unpacks no more of a member than its declared size.
            check_item_bytes(str(path), f"an array {name!r}", declared.file_size)
            with archive.open(declared) as member:
                content = io.BytesIO(member.read())
            return _read_npy(str(path), content, declared.file_size)


def _read_npy(who: str, file: BinaryIO, size: int) -> np.ndarray:
    version = np.lib.format.read_magic(file)
    if version not in _NPY_HEADERS:
        # Version 3 is only for non-Latin-1 column names.
        raise FeatureError(message(who, "an array of numbers", f"npy version {version}"))
    shape, _, dtype = _NPY_HEADERS[version](file)
    if dtype.hasobject:
        raise FeatureError(message(who, "an array of numbers", "pickled objects"))
    if any(length < 0 for length in shape):
        raise ValueError(f"a header with the shape {shape}")
    check_item_bytes(who, "an array", features_bytes(shape, dtype.itemsize))
    declared, there = math.prod(shape) * dtype.itemsize, size - file.tell()
    if declared > there:
        raise ValueError(f"it is truncated: it has {there:,} of {declared:,} bytes")
    file.seek(0)
    array: np.ndarray = np.lib.format.read_array(file, allow_pickle=False)
    return array


def load_tensors(path: Path) -> Any:
    """Read a file of `torch.save` that holds only tensors and plain values.

    Tensors that declare more bytes than the file has are rejected. Files from before torch 1.6 can
    be read, too, but do not declare sizes in advance.
    """
    with foreign_errors(FileError, f"cannot read {path}"):
        if _begins(path, _ZIP):
            most: int | None = _largest_record(path)
            content = torch.load(path, map_location="cpu", weights_only=True)
        else:
            # From memory, as torch trusts the sizes that such a file declares.
            most = None
            source = io.BytesIO(path.read_bytes())
            content = torch.load(source, map_location="cpu", weights_only=True)
        for tensor in _tensors_in(content):
            if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
                continue  # not used as numbers here
            held = tensor.untyped_storage().nbytes()
            # Torch before about 2.9 trusts this, and reads out of bounds.
            if most is not None and held > most:
                raise ValueError(f"a tensor of {held:,} bytes in a file whose largest has {most:,}")
        return content


def _largest_record(path: Path) -> int:
    """Return the size of the largest part of a torch archive; raise if one is compressed."""
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
    for record in records:
        if record.compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"its part {record.filename[:60]!r} is compressed")
    return max((record.file_size for record in records), default=0)


def _tensors_in(content: Any) -> Iterator[Tensor]:
    if isinstance(content, Tensor):
        yield content
    elif isinstance(content, dict):
        yield from _tensors_in(list(content.values()))
    elif isinstance(content, list | tuple | set):
        for one in content:
            yield from _tensors_in(one)


def _begins(path: Path, signature: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(signature)) == signature
