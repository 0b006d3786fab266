"""Datasets of HDF5 files of strangers: only what lies in the file, and no larger than it may be."""

import math
import zlib
from itertools import islice
from typing import Any

from tmapdiff._core.arrays import features_bytes
from tmapdiff._core.checks import message, require
from tmapdiff._core.limits import check_item_bytes, max_item_bytes
from tmapdiff.errors import FeatureError

_DEFLATE, _LZF = 1, 32000  # HDF5's numbers of filters
# To how much a byte can be unpacked at most.
_MOST_UNPACKED = {_DEFLATE: 1032, _LZF: 132}


def dataset_of(who: str, file: Any, name: str) -> Any:
    """Return a dataset, or the only one in a group.

    Raises:
        FeatureError: If there is something else, or it lies in another file.
    """
    h5py: Any = require("h5py", extra="train", purpose="reading HDF5 features")
    item = _member(who, h5py, file, name)
    if isinstance(item, h5py.Group):
        members = list(islice(item, 6))
        found = _member(who, h5py, item, members[0]) if len(members) == 1 else None
        if not isinstance(found, h5py.Dataset):
            expected = "a dataset, or a group with exactly one"
            raise FeatureError(message(who, expected, f"a group with {members[:5]}"))
        item = found
    if not isinstance(item, h5py.Dataset):
        raise FeatureError(message(who, "a dataset", f"a {type(item).__name__.lower()}"))
    return item


def _member(who: str, h5py: Any, group: Any, name: str) -> Any:
    if isinstance(group.get(name, getlink=True), h5py.ExternalLink):
        raise FeatureError(message(who, "features in the file itself", "a link to another file"))
    return group[name]


def check_dataset(who: str, dataset: Any) -> None:
    """Check what a dataset declares, before it is read.

    Raises:
        FeatureError: If it holds no numbers, or they lie in other files.
        SizeLimitError: If it takes more memory than it may.
    """
    if dataset.dtype.kind not in "fiu":
        raise FeatureError(message(who, "features that are real numbers", f"dtype {dataset.dtype}"))
    if dataset.shape is None:
        raise FeatureError(message(who, "features of shape (T, D)", "none"))
    if dataset.external or dataset.is_virtual:
        raise FeatureError(message(who, "features in the file itself", "some in other files"))
    itemsize = dataset.dtype.itemsize
    check_item_bytes(who, "features", features_bytes(dataset.shape, itemsize))
    if dataset.chunks and math.prod(dataset.shape):
        # Each is unpacked as a whole, however little of it lies in the dataset.
        chunk = math.prod(dataset.chunks) * itemsize
        check_item_bytes(who, "a chunk of features", chunk)
        _check_packed_chunks(who, dataset, chunk)


def _check_packed_chunks(who: str, dataset: Any, declared: int) -> None:
    """Refuse chunks that are unpacked to more than they declare: HDF5 would unpack them wholly."""
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
            # A checksum that HDF5 puts behind the numbers takes four bytes.
            unpacked.decompress(packed, declared + 4)
            if not unpacked.unconsumed_tail:
                continue
        check_item_bytes(who, "a chunk that is unpacked", info.size * _MOST_UNPACKED[packing[0]])
