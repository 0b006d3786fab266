"""Feature stores: the video features that other models computed, by video id."""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from tmapdiff._core.arrays import features_bytes, load_npy, load_npz, load_tensors
from tmapdiff._core.checks import (
    check_int,
    check_no_address,
    check_range,
    message,
    require,
    short,
    shown,
)
from tmapdiff._core.files import list_visible
from tmapdiff._core.limits import JSON_GROWTH, check_item_bytes, read_at_most
from tmapdiff.data._hdf5 import check_dataset, dataset_of
from tmapdiff.data._hdf5_attributes import AttributeReader
from tmapdiff.data._spelling import some_ids
from tmapdiff.data._video_ids import (
    check_video_id,
    file_name,
    find_file,
    hdf5_key,
    is_shortened,
    is_video_id,
    video_id_of,
    video_id_of_key,
)
from tmapdiff.errors import (
    ArgumentError,
    FeatureError,
    FileError,
    MissingFeatureError,
    TmapdiffError,
)

ATTRIBUTES = "attributes.json"  # in a folder, what HDF5 files have as attributes
_STRIDE = "seconds_per_feature"
_DESCRIPTION = "description"  # likewise: what the features are, such as simulated ones
_HDF5_SUFFIXES = (".hdf5", ".h5")
_HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"


@runtime_checkable
class FeatureStore(Protocol):
    """Anything that gives the features of a video by its id.

    A store may be used from several processes and threads at once, and can be pickled.
    """

    @property
    def feature_dim(self) -> int:
        """Width D of the features."""

    @property
    def seconds_per_feature(self) -> float | None:
        """Seconds from one feature to the next; None if the features divide each video equally."""

    @property
    def description(self) -> str:
        """One line that names the features in a table of results."""

    def __contains__(self, video_id: object) -> bool:
        """Tell whether the store has features of a video."""

    def __getitem__(self, video_id: str) -> Tensor:
        """Return the features of a video, (T, D) float32; the caller may change them.

        Raises:
            MissingFeatureError: If the store has none.
        """


class HDF5FeatureStore:
    """Features in one HDF5 file: a dataset a video, as MS-2D-TAN's, or a group with one dataset.

    The file is opened once in each process, when first read: workers may be forked or spawned, and
    any number of threads may read. Links to other files are not followed.

    Args:
        path: The file.
        seconds_per_feature: Seconds from one feature to the next. If None, what the file says in
            its attribute of that name, as `extract_features` writes it; where it has none, the
            features divide each video equally.

    Raises:
        FileError: If the file is missing, is no HDF5 file, is truncated, or is empty.
        FeatureError: If the first video's features have no width or lie in another file, or the
            file says another `seconds_per_feature`.
        ArgumentError: If `seconds_per_feature` is not positive.
        MissingDependencyError: If h5py is not installed.

    Example:
        >>> store = HDF5FeatureStore("vgg_rgb.hdf5", seconds_per_feature=1 / 6)  # doctest: +SKIP
        >>> store["AO8RW"].shape  # doctest: +SKIP
        torch.Size([198, 4096])
    """

    def __init__(
        self, path: str | os.PathLike[str], seconds_per_feature: float | None = None
    ) -> None:
        self.path = Path(path)
        self._attributes = AttributeReader(self.path)
        self._handle: Any = None
        self._handle_pid = -1
        self._described = ""
        try:
            self.feature_dim = self._width_of_first()
            stated = self._stated_stride()
            self._described = self._stated_description()
        finally:
            self._close()
        self.seconds_per_feature = _agreed_stride(
            "HDF5FeatureStore", self.description, seconds_per_feature, stated
        )

    @property
    def description(self) -> str:
        """One line for tables, with what the file says of its features."""
        return f"HDF5 features {self.path.name}{self._described}"

    def __repr__(self) -> str:
        return f"HDF5FeatureStore({str(self.path)!r}, {self.seconds_per_feature})"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_handle": None, "_handle_pid": -1}

    def __contains__(self, video_id: object) -> bool:
        if not is_video_id(video_id):
            return False
        with self._reading() as file:
            return hdf5_key(video_id) in file

    def __getitem__(self, video_id: str) -> Tensor:
        """Return the features of a video.

        Shape:
            - returns: (T, D) float32

        Raises:
            MissingFeatureError: If the file has none.
            FileError: If the file cannot be read, or (`SizeLimitError`) declares more than a video
                may take.
            FeatureError: If they are not of shape (T, D) with T >= 1 and the store's D, not
                numbers, not finite, or lie in another file.
            AnnotationError: If the id contains `/` or the like.
        """
        with self._reading() as file:
            dataset = self._dataset(file, video_id)
            check_dataset(self._named(video_id), dataset)
            array = dataset[()]
        return _checked_features(self.description, video_id, array, self.feature_dim)

    @property
    def attributes(self) -> dict[str, Any]:
        """What the file says of all its features, such as the model that made them.

        HDF5 keeps texts in a part of the file where damage can hold it for ever. So they are read
        in a process of its own, which has ten seconds, and takes up to 0.3 to start.

        Raises:
            FileError: If they cannot be read.
        """
        with self._reading() as file:
            return self._attributes.read(file)

    @property
    def video_ids(self) -> tuple[str, ...]:
        """The videos whose features are in the file.

        Raises:
            FileError: If the file cannot be read.
        """
        with self._reading() as file:
            return tuple(map(video_id_of_key, file))

    def attributes_of(self, video_id: str) -> dict[str, Any]:
        """Return what the file says of the features of video `video_id`; see `attributes`.

        Raises:
            MissingFeatureError: If the file has none.
            FeatureError: If the file has something else of that name.
            AnnotationError: If the id contains `/` or the like.
            FileError: If the file cannot be read.
        """
        with self._reading() as file:
            return self._attributes.read(self._dataset(file, video_id))

    def stored_dtype(self, video_id: str) -> str:
        """Return the type of the features of video `video_id` in the file.

        Raises:
            MissingFeatureError: If the file has none.
            FeatureError: If the file has something else of that name.
            AnnotationError: If the id contains `/` or the like.
            FileError: If the file cannot be read.
        """
        with self._reading() as file:
            return str(self._dataset(file, video_id).dtype)

    def _width_of_first(self) -> int:
        with self._reading() as file:
            first = next(iter(file), None)
            if first is None:
                got = "an empty file"
                raise FileError(message(str(self.path), "a dataset for each video", got))
            who = self._named(video_id_of_key(first))
            shape = dataset_of(who, file, first).shape
        if shape is None or len(shape) < 2:
            raise FeatureError(message(who, "features of shape (T, D)", shape))
        return int(shape[-1])

    def _stated_stride(self) -> float | None:
        with self._reading() as file:
            if _STRIDE not in file.attrs:
                return None
            # Before it is read: it could be an array of any size, or a text (see `attributes`).
            about = file.attrs.get_id(_STRIDE)
            if about.shape != () or about.dtype.kind not in "fiu":
                got = f"{about.dtype} of shape {about.shape}"
                raise FeatureError(message(str(self.path), f"{_STRIDE} to be a number", got))
            return float(file.attrs[_STRIDE])

    def _stated_description(self) -> str:
        with self._reading() as file:
            said = self._attributes.read(file) if _DESCRIPTION in file.attrs else {}
        return _described(said)

    @contextmanager
    def _reading(self) -> Iterator[Any]:
        """Give the file as this process opened it; what goes wrong with it is a FileError."""
        try:
            yield self._opened()
        except TmapdiffError:
            raise
        # h5py has no error of its own: damage shows as any.
        except Exception as error:
            raise FileError(f"cannot read {self.path} as HDF5: {_one_line(error)}.") from error

    def _opened(self) -> Any:
        h5py = require("h5py", extra="train", purpose="reading HDF5 features")
        # Threads may be the first to read it at once. h5py's own lock, for which forks wait: of two
        # locks, each could be held by a thread that waits for the other.
        with h5py._objects.phil:
            if self._handle_pid != os.getpid():
                # From before a fork, both would be shared with the parent.
                self._close()
                self._attributes = AttributeReader(self.path)
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
        if key not in file:
            raise _missing(self, video_id)
        return dataset_of(self._named(video_id), file, key)

    def _named(self, video_id: str) -> str:
        return f"{self.description}, video {video_id!r}"


class _FolderFeatureStore:
    """A folder with one file a video."""

    _suffix: str

    def __init__(
        self,
        folder: str | os.PathLike[str],
        seconds_per_feature: float | None = None,
        *,
        follow_links: bool = False,
    ) -> None:
        who = type(self).__name__
        self.folder = Path(folder)
        self.follow_links = follow_links
        self._stated = read_attributes(self.folder)
        self.attributes: dict[str, Any] = self._stated["attributes"]
        self.seconds_per_feature = _agreed_stride(
            who, self.description, seconds_per_feature, self.attributes.get(_STRIDE)
        )
        names = _names(self.folder)
        first = min((name for name in names if name.endswith(self._suffix)), default=None)
        if first is None:
            expected = f"a folder with {self._suffix} files"
            raise FileError(message(who, expected, _contents(self.folder, names)))
        array = self._read_inside(first)
        if array.ndim < 2:
            who = f"{self.description}, {first}"
            raise FeatureError(message(who, "features of shape (T, D)", array.shape))
        self.feature_dim = int(array.shape[-1])

    @property
    def description(self) -> str:
        """One line for tables, with what `attributes.json` says of the features."""
        described = _described(self.attributes)
        return f"{self._suffix} features in folder {self.folder.resolve().name}{described}"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.folder)!r}, {self.seconds_per_feature})"

    def __contains__(self, video_id: object) -> bool:
        if not is_video_id(video_id):
            return False
        return find_file(self.folder, video_id, self._suffix) is not None

    def __getitem__(self, video_id: str) -> Tensor:
        """Return the features of a video.

        Shape:
            - returns: (T, D) float32

        Raises:
            MissingFeatureError: If there is no file of this video.
            FileError: If the file is damaged, cannot be read, is a link that is not followed, or
                (`SizeLimitError`) declares more than a video may take.
            FeatureError: If they are not of shape (T, D) with T >= 1 and the store's D, not
                numbers, or not finite.
            AnnotationError: If the id contains `/` or the like.
        """
        array = self._read_inside(self._name_of(video_id))
        return _checked_features(self.description, video_id, array, self.feature_dim)

    @property
    def video_ids(self) -> tuple[str, ...]:
        """The videos whose features are in the folder.

        Raises:
            FileError: If the folder cannot be read.
        """
        names = [name for name in _names(self.folder) if name.endswith(self._suffix)]
        known: dict[str, str] = {}
        if any(map(is_shortened, names)):  # `attributes.json` says of which videos they are
            known = {file_name(one, self._suffix): one for one in self._stated["videos"]}
        return tuple(sorted(known.get(one) or video_id_of(one, self._suffix) for one in names))

    def attributes_of(self, video_id: str) -> dict[str, Any]:
        """Return what `attributes.json` in the folder says of the features of `video_id`."""
        return dict(self._stated["videos"].get(video_id, {}))

    def stored_dtype(self, video_id: str) -> str:
        """Return the type of the features of video `video_id` in its file.

        Raises:
            MissingFeatureError: If there is no file of this video.
            AnnotationError: If that cannot be an id, such as one with a slash.
            FileError: If it cannot be read.
            FeatureError: If it holds no array of numbers.
        """
        return str(self._read_inside(self._name_of(video_id)).dtype)

    def _name_of(self, video_id: str) -> str:
        check_video_id(self.description, video_id)
        name = find_file(self.folder, video_id, self._suffix)
        if name is None:
            raise _missing(self, video_id)
        return name

    def _read_inside(self, name: str) -> np.ndarray:
        path = self.folder / name
        if not path.is_file():  # a pipe, say, which would be waited for
            raise FileError(f"cannot read {path}: it is no file.")
        if path.is_symlink() and not self.follow_links:
            target = path.resolve()
            if not target.is_relative_to(self.folder.resolve()):
                hint = "Pass follow_links=True if it is meant."
                got = f"a link to {target}"
                raise FileError(message(str(path), "a file in its folder", got, hint))
        return self._read(path)

    def _read(self, path: Path) -> np.ndarray:
        raise NotImplementedError


class NpyFeatureStore(_FolderFeatureStore):
    """Features in a folder of `{video_id}.npy`, of shape (T, D) or (T, 1, 1, D) (VSLNet, LGI).

    Args:
        folder: The folder.
        seconds_per_feature: Seconds from one feature to the next. If None, what `attributes.json`
            in the folder says, as `convert_features` writes it; where it says nothing, the features
            divide each video equally.
        follow_links: Whether links to files outside of the folder are followed.

    Raises:
        FileError: If the folder is missing or has no `.npy` file, or its first cannot be read.
        FeatureError: If the first file holds no numbers or has no width.
        ArgumentError: If `seconds_per_feature` is not positive.
    """

    _suffix = ".npy"

    def _read(self, path: Path) -> np.ndarray:
        return load_npy(path)


class NpzFeatureStore(_FolderFeatureStore):
    """Features in a folder of `{video_id}.npz`, under the key `features` (lighthouse, moment_detr).

    Args:
        folder: The folder.
        seconds_per_feature: Seconds from one feature to the next. If None, what `attributes.json`
            in the folder says, as `convert_features` writes it; where it says nothing, the features
            divide each video equally.
        follow_links: Whether links to files outside of the folder are followed.

    Raises:
        FileError: If the folder is missing or has no `.npz` file, or its first cannot be read.
        FeatureError: If the first file has no key `features`, holds no numbers, or has no width.
        ArgumentError: If `seconds_per_feature` is not positive.
    """

    _suffix = ".npz"

    def _read(self, path: Path) -> np.ndarray:
        return load_npz(path, "features")


class PtFeatureStore(_FolderFeatureStore):
    """Features in a folder of `{video_id}.pt`, each a tensor (mmaction2, FlashVTG).

    Args:
        folder: The folder.
        seconds_per_feature: Seconds from one feature to the next. If None, what `attributes.json`
            in the folder says, as `convert_features` writes it; where it says nothing, the features
            divide each video equally.
        follow_links: Whether links to files outside of the folder are followed.

    Raises:
        FileError: If the folder is missing or has no `.pt` file, or its first cannot be read.
        FeatureError: If the first file holds no tensor of numbers or has no width.
        ArgumentError: If `seconds_per_feature` is not positive.
    """

    _suffix = ".pt"

    def _read(self, path: Path) -> np.ndarray:
        content = load_tensors(path)
        if not isinstance(content, Tensor):
            raise FeatureError(message(str(path), "a tensor", type(content).__name__))
        if content.layout != torch.strided or content.is_quantized or content.device.type != "cpu":
            kind = f"{content.layout} of {content.dtype} on {content.device}"
            raise FeatureError(message(str(path), "a dense tensor of numbers", kind))
        # A tensor may repeat what is in the file: one number, a million times.
        declared = features_bytes(tuple(content.shape), content.element_size())
        check_item_bytes(str(path), "a tensor", declared)
        if content.is_floating_point():
            content = content.float()  # NumPy has no bfloat16
        return content.detach().resolve_conj().resolve_neg().numpy()


class ConcatFeatureStore:
    """Features of several stores side by side, such as SlowFast's and CLIP's.

    Where the stores differ by one feature in a video, the longer ones lose their last.

    Args:
        stores: The stores, of one rate.

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
            raise ArgumentError(message(who, "stores of one seconds_per_feature", got))
        (self.seconds_per_feature,) = rates
        self.feature_dim = sum(store.feature_dim for store in self.stores)

    @property
    def description(self) -> str:
        """One line for tables."""
        return " + ".join(store.description for store in self.stores)

    def __repr__(self) -> str:
        return f"ConcatFeatureStore({list(self.stores)!r})"

    def __contains__(self, video_id: object) -> bool:
        return all(video_id in store for store in self.stores)

    def __getitem__(self, video_id: str) -> Tensor:
        """Return the features of a video.

        Shape:
            - returns: (T, D) float32

        Raises:
            MissingFeatureError: If a store has none.
            FeatureError: If the stores differ by more than one feature, or as the stores.
            FileError, AnnotationError: As the stores.
        """
        parts = [store[video_id] for store in self.stores]
        lengths = [len(part) for part in parts]
        if max(lengths) - min(lengths) > 1:
            who = f"{self.description}, video {video_id!r}"
            expected = "stores that differ by one feature at most"
            raise FeatureError(message(who, expected, f"lengths {lengths}"))
        return torch.cat([part[: min(lengths)] for part in parts], dim=1)


class NormalizedFeatureStore:
    """Features of another store, each divided by its L2 norm; features of zeros stay so.

    2D-TAN, MS-2D-TAN, moment_detr and lighthouse read theirs so. Of stores side by side, each is
    normalised on its own: `ConcatFeatureStore([NormalizedFeatureStore(one), ...])`.

    Args:
        store: The store.
    """

    def __init__(self, store: FeatureStore) -> None:
        self.store = store
        self.feature_dim = store.feature_dim
        self.seconds_per_feature = store.seconds_per_feature

    @property
    def description(self) -> str:
        """One line for tables."""
        return f"{self.store.description}, L2-normalised"

    def __repr__(self) -> str:
        return f"NormalizedFeatureStore({self.store!r})"

    def __contains__(self, video_id: object) -> bool:
        return video_id in self.store

    def __getitem__(self, video_id: str) -> Tensor:
        """Return the features of a video.

        Shape:
            - returns: (T, D) float32

        Raises:
            MissingFeatureError, FeatureError, FileError, AnnotationError: As the store.
        """
        return torch.nn.functional.normalize(self.store[video_id], dim=-1)


def open_feature_store(
    path: str | os.PathLike[str],
    seconds_per_feature: float | None = None,
    *,
    follow_links: bool = False,
) -> FeatureStore:
    """Open the features at `path`, whichever of the formats they have.

    Args:
        path: An HDF5 file, or a folder of `.npy`, of `.npz` or of `.pt` files.
        seconds_per_feature: Seconds from one feature to the next. If None, what the store says of
            itself; where it says nothing, the features divide each video equally.
        follow_links: Whether links in a folder to files outside of it are followed.

    Raises:
        FileError: If there is nothing at `path`, or something else.
        FeatureError: If the features of the first video cannot be used, or the store says another
            `seconds_per_feature`.
        ArgumentError: If `seconds_per_feature` is not positive.
        MissingDependencyError: If it is an HDF5 file and h5py is not installed.
    """
    place = Path(path)
    if place.is_file():
        try:
            with place.open("rb") as file:
                signature = file.read(len(_HDF5_SIGNATURE))
        except OSError as error:
            raise FileError(f"cannot read {place}: {error.strerror or error}.") from error
        if signature == _HDF5_SIGNATURE or place.suffix.lower() in _HDF5_SUFFIXES:
            return HDF5FeatureStore(place, seconds_per_feature)
        got = f"the file {place}"
    else:
        names = _names(place) if place.is_dir() else []
        found = [
            kind for kind in _FOLDER_STORES if any(name.endswith(kind._suffix) for name in names)
        ]
        if len(found) == 1:
            return found[0](place, seconds_per_feature, follow_links=follow_links)
        suffixes = " and ".join(kind._suffix for kind in found)
        got = f"{suffixes} files in {place}" if found else _contents(place, names)
    check_no_address("open_feature_store", path)
    expected = "an HDF5 file, or a folder of .npy, of .npz or of .pt files"
    raise FileError(message("open_feature_store", expected, got))


_FOLDER_STORES = (NpyFeatureStore, NpzFeatureStore, PtFeatureStore)


def _checked_features(
    description: str, video_id: str, array: np.ndarray, feature_dim: int
) -> Tensor:
    who = f"{description}, video {video_id!r}"
    array = np.asarray(array)
    if array.dtype.kind not in "fiu":
        raise FeatureError(message(who, "features that are real numbers", f"dtype {array.dtype}"))
    if array.ndim == 4 and array.shape[1:3] == (1, 1):
        array = array[:, 0, 0]
    if array.ndim != 2 or array.shape[0] == 0:
        raise FeatureError(message(who, "features of shape (T, D) with T >= 1", array.shape))
    if array.shape[1] != feature_dim:
        expected = f"{feature_dim} numbers a feature, as in the rest of the store"
        hint = "The other axis has as many: transpose these features."
        hint = hint if array.shape[0] == feature_dim else ""
        raise FeatureError(message(who, expected, array.shape[1], hint))
    with np.errstate(over="ignore"):
        # A copy: nobody else's memory, in the machine's byte order.
        features = torch.from_numpy(np.array(array, dtype=np.float32, order="C"))
    finite = torch.isfinite(features)
    if not finite.all():
        row = int((~finite).any(dim=1).int().argmax())
        got = f"NaN or infinity in {int((~finite).sum())} places, first in row {row}"
        raise FeatureError(message(who, "finite float32 features", got))
    return features


def _agreed_stride(
    who: str, description: str, asked: float | None, stated: float | None
) -> float | None:
    """Return the rate that was asked for or, if none was, the one that the store states."""
    stated = _checked_stride(description, stated)
    asked = _checked_stride(who, asked)
    if stated is not None and asked not in (None, stated):
        expected = f"seconds_per_feature = {stated}, as the store says"
        raise FeatureError(message(description, expected, asked))
    return asked if stated is None else stated


def read_attributes(folder: Path) -> dict[str, dict[str, Any]]:
    """Read what a folder says of its features: of all, and of each video."""
    path = folder / ATTRIBUTES
    if not path.is_file():
        return {"attributes": {}, "videos": {}}
    try:
        with path.open("rb") as file:
            content = json.loads(read_at_most(str(path), file, JSON_GROWTH))
    except FileError:
        raise
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror or error}.") from error
    except (ValueError, RecursionError):
        content = None
    if (
        not isinstance(content, dict)
        or not all(isinstance(content.get(name), dict) for name in ("attributes", "videos"))
        or not all(isinstance(one, dict) for one in content["videos"].values())
    ):
        expected = "a JSON object of the objects 'attributes' and 'videos'"
        raise FeatureError(message(f"{path}", expected, "something else"))
    return content


def _described(said: dict[str, Any]) -> str:
    text = said.get(_DESCRIPTION)
    return f": {short(text)}" if text and isinstance(text, str) else ""


def _checked_stride(who: str, seconds_per_feature: float | None) -> float | None:
    if seconds_per_feature is None:
        return None
    return check_range(who, "seconds_per_feature", seconds_per_feature, 0, open_low=True)


def _missing(store: FeatureStore, video_id: str) -> MissingFeatureError:
    hint = "AnnotationSet.restrict_to(store) leaves such videos out, or finds how it spells them."
    hint += f" The store has {', '.join(map(shown, some_ids(store)))}, ..."
    expected = f"features of {shown(video_id)}"
    return MissingFeatureError(message(store.description, expected, "none", hint))


def _names(folder: Path) -> list[str]:
    return [path.name for path in list_visible(folder)]


def _contents(place: Path, names: list[str]) -> str:
    if not place.exists():
        return f"nothing at {place}"
    suffixes = sorted({Path(name).suffix or "no suffix" for name in names})
    return f"{len(names)} entries ({', '.join(suffixes[:5]) or 'empty'}) in {place}"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")
