"""Reading untrusted HDF5 files: only data in the file itself, and within the memory limit.

Anything else raises FeatureError or SizeLimitError, with `who` as its name.
"""

import math
import zlib
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from tmapdiff._core.checks import message, require
from tmapdiff._core.limits import JSON_GROWTH, check_item_bytes, max_item_bytes
from tmapdiff.data._reading import reading
from tmapdiff.errors import FeatureError

HDF5_SUFFIXES = (".hdf5", ".h5")
_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_DEFLATE, _LZF = 1, 32000  # HDF5's filter numbers
_MOST_UNPACKED = {_DEFLATE: 1032, _LZF: 132}  # largest compression ratios
# Kinds of attributes stored in place. Others, such as variable-length texts, are stored in a heap,
# where damage can hang or crash HDF5.
_IN_PLACE = "fiubS"
_LONGEST_TEXT = 64_000  # bytes of an attribute in place; HDF5 allows about 65,500


def is_hdf5(path: Path) -> bool:
    """Return whether a file is HDF5, by its suffix or first bytes."""
    with reading(path), path.open("rb") as file:
        return path.suffix.lower() in HDF5_SUFFIXES or file.read(8) == _SIGNATURE


def dataset_of(who: str, file: Any, name: str) -> Any:
    """Return a dataset, or the only one in a group; None if the name does not exist."""
    h5py: Any = require("h5py", extra="train", purpose="reading HDF5 features")
    item = find_member(who, file, name)
    if isinstance(item, h5py.Group):
        members = list(islice(item, 6))
        only = find_member(who, item, members[0]) if len(members) == 1 else None
        if not isinstance(only, h5py.Dataset):
            expected = "a dataset, or a group with exactly one"
            raise FeatureError(message(who, expected, f"a group with {members[:5]}"))
        item = only
    if item is None:
        return None
    if not isinstance(item, h5py.Dataset):
        raise FeatureError(message(who, "a dataset", f"a {type(item).__name__.lower()}"))
    if item.external or item.is_virtual:  # even their shape may depend on other files
        raise FeatureError(message(who, "features in the file itself", "some in other files"))
    return item


def find_member(who: str, group: Any, name: str) -> Any:
    """Return an object in a group, or None."""
    return group[name] if has_member(who, group, name) else None


def has_member(who: str, group: Any, name: str) -> bool:
    """Return whether a group has an object, and refuse links.

    HDF5 itself would open other files, which may be pipes.
    """
    h5py: Any = require("h5py", extra="train", purpose="reading HDF5 features")
    link = group.get(name, getlink=True)
    if isinstance(link, h5py.SoftLink | h5py.ExternalLink):
        raise FeatureError(message(who, "features in the file itself", "a link"))
    return link is not None


def check_dataset(who: str, dataset: Any) -> None:
    """Check the declarations of a dataset before reading it."""
    if dataset.dtype.kind not in "fiu":
        raise FeatureError(message(who, "features that are real numbers", f"dtype {dataset.dtype}"))
    if dataset.shape is None:
        raise FeatureError(message(who, "features of shape (T, D)", "none"))
    itemsize = dataset.dtype.itemsize
    check_item_bytes(who, "features", math.prod(dataset.shape) * max(itemsize, 4))  # as float32
    if dataset.chunks and math.prod(dataset.shape):
        # Chunks are unpacked completely, even if little of them lies in the dataset.
        chunk = math.prod(dataset.chunks) * itemsize
        check_item_bytes(who, "a chunk of features", chunk)
        _check_packed_chunks(who, dataset, chunk)


def _check_packed_chunks(who: str, dataset: Any, declared: int) -> None:
    """Refuse chunks that unpack to more than they declare, which HDF5 would allocate."""
    properties = dataset.id.get_create_plist()
    filters = [properties.get_filter(i)[0] for i in range(properties.get_nfilters())]
    packing = [one for one in filters if one in _MOST_UNPACKED]
    if len(packing) > 1:
        raise FeatureError(message(who, "features compressed once", f"{len(packing)} times"))
    if not packing:
        return
    most = max_item_bytes() // _MOST_UNPACKED[packing[0]]
    for index in range(dataset.id.get_num_chunks()):
        info = dataset.id.get_chunk_info(index)
        if info.size <= most:
            continue
        if packing[0] == _DEFLATE:
            _, packed = dataset.id.read_direct_chunk(info.chunk_offset)
            unpacked = zlib.decompressobj()
            # HDF5 may append a checksum of four bytes.
            unpacked.decompress(packed, declared + 4)
            if not unpacked.unconsumed_tail:
                continue
        check_item_bytes(who, "an unpacked chunk", info.size * _MOST_UNPACKED[packing[0]])


def read_attributes(
    who: str, item: Any, *, all_kinds: bool = False
) -> tuple[dict[str, Any], list[str]]:
    """Read the attributes of a group or dataset that are stored in place, as for JSON.

    The names of the others are returned too; with `all_kinds`, they are read like the rest.
    """
    found, left_out, size = [], [], 0
    for name in item.attrs:
        declared = item.attrs.get_id(name)
        try:
            dtype = declared.dtype
        except TypeError:  # a type that NumPy lacks
            dtype = np.dtype(object)
        if all_kinds or dtype.kind in _IN_PLACE:
            found.append(name)
            size += math.prod(declared.shape or ()) * dtype.itemsize * JSON_GROWTH
        else:
            left_out.append(name)
    check_item_bytes(who, "attributes", size)
    return {name: _plain(item.attrs[name]) for name in found}, left_out


def _plain(value: Any) -> Any:
    """Convert an attribute from h5py to what JSON can hold."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list):
        return [_plain(one) for one in value]
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return value if isinstance(value, str | int | float) else str(value)


def in_place(who: str, name: str, value: str | int | float) -> np.ndarray | int | float:
    """Convert an attribute so that HDF5 stores it in place."""
    if not isinstance(value, str):
        return value
    content = value.encode(errors="backslashreplace")  # file names may not be UTF-8
    if len(content) > _LONGEST_TEXT:
        expected = f"an attribute {name!r} of at most {_LONGEST_TEXT:,} bytes"
        raise FeatureError(message(who, expected, f"{len(content):,}"))
    h5py = require("h5py", extra="video", purpose="writing HDF5 features")
    return np.array(content, h5py.string_dtype("utf-8", max(1, len(content))))
