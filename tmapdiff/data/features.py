"""Feature stores: video features of other models, by video id."""

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from tmapdiff._core.arrays import features_bytes, load_npy, load_npz, load_tensors
from tmapdiff._core.checks import (
    check_int,
    check_no_address,
    check_range,
    foreign_errors,
    message,
    require,
    short,
    shown,
)
from tmapdiff._core.files import list_visible
from tmapdiff._core.limits import check_item_bytes
from tmapdiff.data import _hdf5
from tmapdiff.data._durations import stated_seconds
from tmapdiff.data._reading import json_or_none
from tmapdiff.data._spelling import some_ids
from tmapdiff.data._video_ids import (
    check_video_id,
    find_file,
    hdf5_key,
    is_video_id,
    video_id_of,
    video_id_of_key,
)
from tmapdiff.errors import ArgumentError, FeatureError, FileError, MissingFeatureError

ATTRIBUTES = "attributes.json"  # the attributes of a folder, which HDF5 files have inside
_STRIDE = "seconds_per_feature"
_DESCRIPTION = "description"  # for example that features are simulated


@runtime_checkable
class FeatureStore(Protocol):
    """Anything that returns the features of a video by its id.

    Stores can be used in several processes and threads, and can be pickled.
    """

    @property
    def feature_dim(self) -> int:
        """Width D of the features."""

    @property
    def seconds_per_feature(self) -> float | None:
        """Seconds between features; None if they divide each video equally."""

    @property
    def description(self) -> str:
        """Name of the features in tables of results, in one line."""

    def __contains__(self, video_id: object) -> bool:
        """Return whether the store has features of a video."""

    def __getitem__(self, video_id: str) -> Tensor:
        """Return the features of a video, (T, D) float32, which the caller may change.

        Raises:
            MissingFeatureError: If the store has none.
        """


class _StoredFeatures:
    """Base class of stores in files."""

    feature_dim: int
    seconds_per_feature: float | None
    description: str
    attributes: dict[str, Any]
    left_out: Sequence[str] = ()

    def __getitem__(self, video_id: str) -> Tensor:
        """Return the features of a video.

        Shape:
            - returns: (T, D) float32

        Raises:
            MissingFeatureError: If there are none.
            FileError: If they are damaged, unreadable, behind a link that is not followed, or
                (`SizeLimitError`) too large.
            FeatureError: If they do not have shape (T, D) with T >= 1 and the store's D, are not
                numbers or not finite, or lie in another file.
            AnnotationError: If the id is not allowed, such as one with a slash.
        """
        return self._checked(video_id, self._read(video_id))

    @property
    def video_ids(self) -> tuple[str, ...]:
        """Ids of the videos with features; FileError if the file or folder cannot be read."""
        raise NotImplementedError

    def attributes_of(self, video_id: str) -> dict[str, Any]:
        """Return the attributes of video `video_id`. Folders return none for unknown videos.

        Raises:
            MissingFeatureError, FeatureError, FileError, AnnotationError: As for the features.
        """
        raise NotImplementedError

    def _read(self, video_id: str) -> np.ndarray:
        raise NotImplementedError

    def _describe(self, seconds_per_feature: float | None) -> None:
        """Take over the description and rate of the attributes; refuse another rate."""
        if _STRIDE in self.left_out:
            got = "one of variable length"
            raise FeatureError(message(self.description, f"{_STRIDE} to be a number", got))
        stated, asked = stated_seconds(self.description, self.attributes, _STRIDE), None
        if seconds_per_feature is not None:
            asked = check_range(type(self).__name__, _STRIDE, seconds_per_feature, 0, open_low=True)
        text = self.attributes.get(_DESCRIPTION)
        if text and isinstance(text, str):
            self.description += f": {short(text)}"
        elif _DESCRIPTION in self.left_out:  # they may be simulated
            self.description += " (its description was left out)"
        if stated is not None and asked not in (None, stated):
            expected = f"seconds_per_feature = {stated}, as declared by the store"
            raise FeatureError(message(self.description, expected, asked))
        self.seconds_per_feature = asked if stated is None else stated

    def _missing(self, video_id: str) -> MissingFeatureError:
        hint = "AnnotationSet.restrict_to(store) leaves such videos out, or corrects the spelling."
        hint += f" The store has {', '.join(map(shown, some_ids(self)))}, ..."
        expected = f"features of {shown(video_id)}"
        return MissingFeatureError(message(self.description, expected, "none", hint))

    def _checked(self, video_id: str, array: np.ndarray) -> Tensor:
        who = self._named(video_id)
        if array.dtype.kind not in "fiu":
            expected = "features that are real numbers"
            raise FeatureError(message(who, expected, f"dtype {array.dtype}"))
        if array.ndim == 4 and array.shape[1:3] == (1, 1):
            array = array[:, 0, 0]
        if array.ndim != 2 or array.shape[0] == 0:
            raise FeatureError(message(who, "features of shape (T, D) with T >= 1", array.shape))
        if array.shape[1] != self.feature_dim:
            expected = f"features of width {self.feature_dim}, as in the rest of the store"
            hint = "The other axis has this size: transpose the features."
            hint = hint if array.shape[0] == self.feature_dim else ""
            raise FeatureError(message(who, expected, array.shape[1], hint))
        with np.errstate(over="ignore"):
            # A copy in its own memory and in native byte order.
            features = torch.from_numpy(np.array(array, dtype=np.float32, order="C"))
        finite = torch.isfinite(features)
        if not finite.all():
            row = int((~finite).any(dim=1).int().argmax())
            got = f"NaN or infinity in {int((~finite).sum())} places, first in row {row}"
            raise FeatureError(message(who, "finite float32 features", got))
        return features

    def _named(self, video_id: str) -> str:
        return f"{self.description}, video {video_id!r}"


class HDF5FeatureStore(_StoredFeatures):
    """Features in one HDF5 file: one dataset per video, or a group with one, as in MS-2D-TAN.

    Each process opens the file on first use, so workers may be forked or spawned, and many threads
    may read. Links are refused, as they may lead to other files.

    Variable-length text attributes, written by other programs and earlier releases, are left out
    with a warning, as damage in them can hang HDF5. `tmapdiff convert` writes a file with all.

    Args:
        path: The file.
        seconds_per_feature: As for `open_feature_store`.

    Attributes:
        attributes: Attributes of all features, such as the model that made them.
        left_out: Names of the attributes that are left out.

    Raises:
        FileError: If the file is missing, not HDF5, truncated or empty.
        FeatureError, ArgumentError, MissingDependencyError: As `open_feature_store`.

    Example:
        >>> store = HDF5FeatureStore("vgg_rgb.hdf5", seconds_per_feature=1 / 6)  # doctest: +SKIP
        >>> store["AO8RW"].shape  # doctest: +SKIP
        torch.Size([198, 4096])
    """

    def __init__(
        self, path: str | os.PathLike[str], seconds_per_feature: float | None = None
    ) -> None:
        self.path = Path(path).absolute()  # as the working directory may change
        self.description = f"HDF5 features {self.path.name}"
        self._handle: Any = None
        self._handle_pid = -1
        try:
            with self._reading() as file:
                first, self.feature_dim = self._first(file)
                self.attributes, self.left_out = _hdf5.read_attributes(str(self.path), file)
                _, of_videos = _hdf5.read_attributes(str(self.path), first)
        finally:
            self._close()
        self._describe(seconds_per_feature)
        if left_out := list(dict.fromkeys([*self.left_out, *of_videos])):
            got = f"{', '.join(map(shown, left_out[:5]))} of variable length"
            hint = "They are left out; `tmapdiff convert` writes a file with all."
            text = message(self.description, "attributes of fixed length", got, hint)
            warnings.warn(text, stacklevel=2)

    def __repr__(self) -> str:
        return f"HDF5FeatureStore({str(self.path)!r}, {self.seconds_per_feature})"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_handle": None, "_handle_pid": -1}

    def __contains__(self, video_id: object) -> bool:
        if not is_video_id(video_id):
            return False
        with self._reading() as file:
            return _hdf5.has_member(self._named(video_id), file, hdf5_key(video_id))

    @property
    @override
    def video_ids(self) -> tuple[str, ...]:
        with self._reading() as file:
            return tuple(map(video_id_of_key, file))

    @override
    def attributes_of(self, video_id: str) -> dict[str, Any]:
        with self._reading() as file:
            who = self._named(video_id)
            return _hdf5.read_attributes(who, self._dataset(file, video_id))[0]

    def recover_attributes(self) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
        """Read all attributes, including those left out. Damage in these can hang HDF5.

        Returns:
            The attributes of the file, and those of each video by id.

        Raises:
            FileError: If they cannot be read.
            FeatureError: If the file has other contents than features.
        """
        with self._reading() as file:
            items = {
                video_id: self._dataset(file, video_id)
                for video_id in filter(is_video_id, map(video_id_of_key, file))
            }
            attributes, _ = _hdf5.read_attributes(str(self.path), file, all_kinds=True)
            return attributes, {
                video_id: _hdf5.read_attributes(self._named(video_id), item, all_kinds=True)[0]
                for video_id, item in items.items()
            }

    @override
    def _read(self, video_id: str) -> np.ndarray:
        with self._reading() as file:
            dataset = self._dataset(file, video_id)
            _hdf5.check_dataset(self._named(video_id), dataset)
            array: np.ndarray = dataset[()]
            return array

    def _first(self, file: Any) -> tuple[Any, int]:
        """Return the first dataset and its width."""
        key = next(iter(file), None)
        if key is None:
            raise FileError(message(str(self.path), "a dataset per video", "an empty file"))
        who = self._named(video_id_of_key(key))
        dataset = _hdf5.dataset_of(who, file, key)
        shape = getattr(dataset, "shape", None)
        if shape is None or len(shape) < 2:
            raise FeatureError(message(who, "features of shape (T, D)", shape))
        return dataset, int(shape[-1])

    @contextmanager
    def _reading(self) -> Iterator[Any]:
        """Yield the file as opened in this process; errors of h5py become FileError."""
        # On damaged files h5py may raise any error.
        with foreign_errors(FileError, f"cannot read {self.path} as HDF5"):
            yield self._opened()

    def _opened(self) -> Any:
        h5py = require("h5py", extra="train", purpose="reading HDF5 features")
        # Several threads may open it first. A second lock beside h5py's could deadlock, and forks
        # wait for h5py's.
        with h5py._objects.phil:
            if self._handle_pid != os.getpid():
                # After a fork, the handle would be shared with the parent.
                self._close()
                if not self.path.is_file():
                    expected = f"a file {self.path}"
                    raise FileError(message("HDF5FeatureStore", expected, "no such file"))
                self._handle, self._handle_pid = h5py.File(self.path, "r"), os.getpid()
            return self._handle

    def _close(self) -> None:
        if self._handle is not None:
            self._handle.close()
        self._handle, self._handle_pid = None, -1

    def _dataset(self, file: Any, video_id: str) -> Any:
        key = hdf5_key(check_video_id(self.description, video_id))
        if (dataset := _hdf5.dataset_of(self._named(video_id), file, key)) is None:
            raise self._missing(video_id)
        return dataset


class _FolderFeatureStore(_StoredFeatures):
    """A folder with one file per video."""

    _suffix: str
    _load: Callable[[Path], np.ndarray]

    def __init__(
        self,
        folder: str | os.PathLike[str],
        seconds_per_feature: float | None = None,
        *,
        follow_links: bool = False,
    ) -> None:
        self.folder, self.follow_links = Path(folder).absolute(), follow_links
        self._stated = read_folder_attributes(self.folder)
        self.attributes = self._stated["attributes"]
        self.description = f"{self._suffix} features in folder {self.folder.resolve().name}"
        self._describe(seconds_per_feature)
        if not (names := self._names()):
            expected, got = f"a folder with {self._suffix} files", _contents(self.folder)
            raise FileError(message(type(self).__name__, expected, got))
        array = self._read_inside(names[0])
        if array.ndim < 2:
            who = f"{self.description}, {names[0]}"
            raise FeatureError(message(who, "features of shape (T, D)", array.shape))
        self.feature_dim = int(array.shape[-1])

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.folder)!r}, {self.seconds_per_feature})"

    def __contains__(self, video_id: object) -> bool:
        return is_video_id(video_id) and bool(find_file(self.folder, video_id, self._suffix))

    @property
    @override
    def video_ids(self) -> tuple[str, ...]:
        return tuple(sorted(video_id_of(name, self._suffix) for name in self._names()))

    def _names(self) -> list[str]:
        return [one.name for one in list_visible(self.folder) if one.name.endswith(self._suffix)]

    @override
    def attributes_of(self, video_id: str) -> dict[str, Any]:
        return dict(self._stated["videos"].get(video_id, {}))

    @override
    def _read(self, video_id: str) -> np.ndarray:
        name = find_file(self.folder, check_video_id(self.description, video_id), self._suffix)
        if name is None:
            raise self._missing(video_id)
        return self._read_inside(name)

    def _read_inside(self, name: str) -> np.ndarray:
        path = self.folder / name
        if not path.is_file():  # reading a pipe, for example, would block
            raise FileError(f"cannot read {path}: it is not a file.")
        target = path.resolve()
        if not self.follow_links and not target.is_relative_to(self.folder.resolve()):
            hint = "Pass follow_links=True to allow it."
            raise FileError(message(str(path), "a file in its folder", f"a link to {target}", hint))
        return type(self)._load(path)


class NpyFeatureStore(_FolderFeatureStore):
    """Features in a folder of `{video_id}.npy`, of shape (T, D) or (T, 1, 1, D) (VSLNet, LGI).

    `seconds_per_feature`, `follow_links` and errors are as for `open_feature_store`.

    Args:
        folder: The folder.

    Attributes:
        attributes: Attributes of all features in `attributes.json`.
    """

    _suffix = ".npy"
    _load = staticmethod(load_npy)


class NpzFeatureStore(_FolderFeatureStore):
    """Features in a folder of `{video_id}.npz`, under the key `features` (lighthouse, moment_detr).

    `folder`, `seconds_per_feature`, `follow_links` and errors are as for `NpyFeatureStore`.
    """

    _suffix = ".npz"
    _load = staticmethod(partial(load_npz, name="features"))


class PtFeatureStore(_FolderFeatureStore):
    """Features in a folder of `{video_id}.pt`, one tensor each of any precision.

    `folder`, `seconds_per_feature`, `follow_links` and errors are as for `NpyFeatureStore`. Code in
    the files is never run.
    """

    _suffix = ".pt"

    @staticmethod
    def _load(path: Path) -> np.ndarray:
        content = load_tensors(path)
        if not isinstance(content, Tensor):
            raise FeatureError(message(str(path), "a tensor", type(content).__name__))
        if content.layout != torch.strided or content.is_quantized or content.device.type != "cpu":
            kind = f"{content.layout} of {content.dtype} on {content.device}"
            raise FeatureError(message(str(path), "a dense tensor of numbers", kind))
        # A tensor may be larger than the file, for example by repeating one number.
        declared = features_bytes(tuple(content.shape), content.element_size())
        check_item_bytes(str(path), "a tensor", declared)
        if content.is_floating_point():
            content = content.float()  # NumPy has no bfloat16
        return content.detach().resolve_conj().resolve_neg().numpy()


class ConcatFeatureStore:
    """Concatenated features of several stores, such as SlowFast's and CLIP's.

    If the stores' lengths of a video differ by one feature, the longer ones lose their last; a
    larger difference raises FeatureError on access.

    Args:
        stores: The stores, with equal rates.

    Raises:
        ArgumentError: If there is no store, or their rates differ.
    """

    def __init__(self, stores: Sequence[FeatureStore]) -> None:
        who = "ConcatFeatureStore"
        self.stores = tuple(stores)
        check_int(who, "stores", len(self.stores), at_least=1)
        rates = {store.seconds_per_feature for store in self.stores}
        if len(rates) > 1:
            got = ", ".join(f"{rate}" for rate in rates)
            raise ArgumentError(message(who, "stores with equal seconds_per_feature", got))
        (self.seconds_per_feature,) = rates
        self.feature_dim = sum(store.feature_dim for store in self.stores)
        self.description = " + ".join(store.description for store in self.stores)

    def __repr__(self) -> str:
        return f"ConcatFeatureStore({list(self.stores)!r})"

    def __contains__(self, video_id: object) -> bool:
        return all(video_id in store for store in self.stores)

    def __getitem__(self, video_id: str) -> Tensor:
        parts = [store[video_id] for store in self.stores]
        lengths = [len(part) for part in parts]
        if max(lengths) - min(lengths) > 1:
            who = f"{self.description}, video {video_id!r}"
            expected = "stores that differ by at most one feature"
            raise FeatureError(message(who, expected, f"lengths {lengths}"))
        return torch.cat([part[: min(lengths)] for part in parts], dim=1)


class NormalizedFeatureStore:
    """Features of another store, each divided by its L2 norm unless it is 0.

    2D-TAN, MS-2D-TAN, moment_detr and lighthouse do this, for concatenated features per store:
    `ConcatFeatureStore([NormalizedFeatureStore(one), ...])`.

    Args:
        store: The store.
    """

    def __init__(self, store: FeatureStore) -> None:
        self.store = store
        self.feature_dim = store.feature_dim
        self.seconds_per_feature = store.seconds_per_feature
        self.description = f"{store.description}, L2-normalized"

    def __repr__(self) -> str:
        return f"NormalizedFeatureStore({self.store!r})"

    def __contains__(self, video_id: object) -> bool:
        return video_id in self.store

    def __getitem__(self, video_id: str) -> Tensor:
        return torch.nn.functional.normalize(self.store[video_id], dim=-1)


def open_feature_store(
    path: str | os.PathLike[str],
    seconds_per_feature: float | None = None,
    *,
    follow_links: bool = False,
) -> FeatureStore:
    """Open the features at `path` in any of the formats.

    Args:
        path: An HDF5 file, or a folder of `.npy`, `.npz` or `.pt` files.
        seconds_per_feature: Seconds between features. Defaults to what the store declares, in an
            HDF5 attribute of that name or `attributes.json` of the folder; without it, features
            divide each video equally.
        follow_links: Follow links in a folder to files outside it.

    Raises:
        FileError: If `path` does not exist, cannot be read or has no features.
        FeatureError: If the features of the first video have no width, are not numbers or lie in
            another file, or the store declares another `seconds_per_feature`.
        ArgumentError: If `seconds_per_feature` is not positive.
        MissingDependencyError: If it is an HDF5 file and h5py is not installed.
    """
    place = Path(path)
    if place.is_file():
        if _hdf5.is_hdf5(place):
            return HDF5FeatureStore(place, seconds_per_feature)
        got = f"the file {place}"
    else:
        suffixes = {one.suffix for one in list_visible(place)} if place.is_dir() else set()
        kinds = [kind for kind in _FOLDER_STORES if kind._suffix in suffixes]
        if len(kinds) == 1:
            return kinds[0](place, seconds_per_feature, follow_links=follow_links)
        found = " and ".join(kind._suffix for kind in kinds)
        got = f"{found} files in {place}" if found else _contents(place)
    check_no_address("open_feature_store", path)
    expected = "an HDF5 file, or a folder of .npy, .npz or .pt files"
    raise FileError(message("open_feature_store", expected, got))


_FOLDER_STORES = (NpyFeatureStore, NpzFeatureStore, PtFeatureStore)


def read_folder_attributes(folder: Path) -> dict[str, dict[str, Any]]:
    """Read the attributes in a folder: of all features, and of each video."""
    path = folder / ATTRIBUTES
    if not path.is_file():
        return {"attributes": {}, "videos": {}}
    content = json_or_none(path)
    if (
        not isinstance(content, dict)
        or not all(isinstance(content.get(name), dict) for name in ("attributes", "videos"))
        or not all(isinstance(one, dict) for one in content["videos"].values())
    ):
        expected = "a JSON object with objects 'attributes' and 'videos'"
        raise FeatureError(message(f"{path}", expected, "something else"))
    return content


def _contents(place: Path) -> str:
    if not place.exists():
        return f"nothing at {place}"
    files = list_visible(place)
    suffixes = sorted({one.suffix or "no suffix" for one in files})
    return f"{len(files)} entries ({', '.join(suffixes[:5]) or 'empty'}) in {place}"
