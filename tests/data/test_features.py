import math
import multiprocessing
import os
import pickle
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import h5py
import numpy as np
import pytest
import torch
from helpers.assertions import refuses
from helpers.datasets import write_store as write
from helpers.processes import SECONDS, forks
from hypothesis import given, settings
from hypothesis import strategies as st

from tmapdiff.data import (
    ConcatFeatureStore,
    FeatureStore,
    HDF5FeatureStore,
    NormalizedFeatureStore,
    NpyFeatureStore,
    NpzFeatureStore,
    PtFeatureStore,
    open_feature_store,
    pool_features,
)
from tmapdiff.data.clips import divide_video
from tmapdiff.errors import (
    AnnotationError,
    ArgumentError,
    FeatureError,
    FileError,
    MissingDependencyError,
    MissingFeatureError,
    ShapeError,
    SizeLimitError,
)

KINDS = ["hdf5", "npy", "npz", "pt"]


def random_arrays():
    random = np.random.default_rng(0)
    return {
        name: random.standard_normal((4 + i, 3)) for i, name in enumerate(["A", "B", "C@1.mov"])
    }


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


def test_reads_what_was_written(tmp_path, kind, monkeypatch):
    arrays = random_arrays()
    singleton_axes = {"0": arrays["A"][:, None, None]}  # of the first video
    (tmp_path / "feature_shapes.json").write_text('{"A": 4}')  # of VSLNet
    place = write(tmp_path, kind, {**arrays, **singleton_axes})
    monkeypatch.chdir(tmp_path)
    store = open_feature_store(os.path.relpath(place), 0.5)
    monkeypatch.chdir("/")  # which neither it nor a copy minds
    np.testing.assert_array_equal(store["0"], arrays["A"].astype(np.float32))
    twin = pickle.loads(pickle.dumps(store))
    assert repr(twin) == repr(store)
    for one in (store, twin):
        assert isinstance(one, FeatureStore)
        assert (one.feature_dim, one.seconds_per_feature) == (3, 0.5)
        assert "\n" not in one.description
        for name, array in arrays.items():
            assert name in one
            assert one[name].dtype == torch.float32
            np.testing.assert_array_equal(one[name], array.astype(np.float32))
        one["A"].zero_()  # the caller owns what it got
        assert one["A"].abs().sum() > 0


@pytest.mark.parametrize("dtype", ["<f2", ">f4", "<f8", "u1", ">i4"])
def test_number_formats(tmp_path, kind, dtype):
    array = np.arange(6).reshape(2, 3).astype(dtype)
    features = open_feature_store(write(tmp_path, kind, {"A": array}))["A"]
    assert features.dtype == torch.float32
    assert features.tolist() == [[0, 1, 2], [3, 4, 5]]


def test_hdf5_files_that_say_their_rate(tmp_path):
    path = write(tmp_path, "hdf5", random_arrays())
    assert open_feature_store(path).seconds_per_feature is None
    with h5py.File(path, "a") as file:
        file.attrs["seconds_per_feature"] = 0.5
    for rate in (None, 0.5):
        store = pickle.loads(pickle.dumps(open_feature_store(path, rate)))
        assert store.seconds_per_feature == 0.5
        assert store["A"].shape == (4, 3)
        del store  # lets go of the file
    expected = "expected seconds_per_feature = 0.5, as declared by the store, got 1.0."
    with refuses(FeatureError, f"rgb.hdf5: {expected}"):
        open_feature_store(path, 1)


@pytest.mark.parametrize("video_id", ["Z", "x" * 1000, "NUL", "aux.x", "C:A", "a\ud800", "a\nb"])
def test_a_missing_video(tmp_path, kind, video_id):
    store = open_feature_store(write(tmp_path, kind, random_arrays()))
    assert video_id not in store
    assert 3 not in store
    with pytest.raises(KeyError) as caught:
        store[video_id]
    with refuses(MissingFeatureError, "expected features of ", ", got none. Annotat"):
        raise caught.value
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("video_id", ["../A", "sub/A", "/etc/A", "..", "sub\\A", "A\0", ""])
def test_ids_stay_inside(tmp_path, kind, video_id):
    inside = tmp_path / "sub"
    inside.mkdir()
    nested = {"sub/A": [[1.0]]} if kind == "hdf5" else {}
    path = write(tmp_path, kind, {**random_arrays(), **nested})
    np.save(inside / "A.npy", np.ones((2, 3)))
    np.savez(inside / "A.npz", features=np.ones((2, 3)))
    store = open_feature_store(path)
    assert video_id not in store
    with refuses(AnnotationError, "expected a video id without"):
        store[video_id]


@pytest.mark.parametrize(
    ("bad", "text"),
    [
        (np.ones((2, 4)), "expected features of width 3, as in the rest of the store, got 4."),
        (np.ones((3, 7)), "got 7. The other axis has this size: transpose the features."),
        (np.ones(3), "expected features of shape (T, D) with T >= 1, got (3,)"),
        (np.ones((2, 3, 3)), "T >= 1, got (2, 3, 3)"),
        (np.ones((2, 1, 2, 3)), "T >= 1, got (2, 1, 2, 3)"),
        (np.ones((0, 3)), "T >= 1, got (0, 3)"),
        (np.array([[1, 2, 3], [1, np.nan, np.inf]]), "NaN or infinity in 2 places, first in row 1"),
        (np.full((2, 3), 1e300), "finite float32 features, got NaN or infinity in 6 places"),
        (np.ones((2, 3), dtype=bool), "expected features that are real numbers, got dtype bool"),
        (np.ones((2, 3), dtype=complex), "real numbers, got dtype complex128"),
        (np.full((2, 3), b"xy"), "real numbers, got dtype |S2"),
    ],
)
def test_bad_features_are_named(tmp_path, kind, bad, text):
    if kind == "pt" and bad.dtype.kind == "S":
        pytest.skip("torch has no tensors of text")
    store = open_feature_store(write(tmp_path, kind, {"A": np.ones((2, 3)), "bad": bad}))
    with refuses(FeatureError, f"{store.description}, video 'bad': expected ", text):
        store["bad"]
    assert store["A"].shape == (2, 3)


def test_what_is_refused_on_opening(tmp_path, kind):
    path = write(tmp_path, kind, random_arrays())
    for stride in (0, -1, float("nan"), "x"):
        with refuses(ArgumentError, "expected seconds_per_feature in (0, inf)"):
            open_feature_store(path, stride)
    path = write(tmp_path, kind, {"A": np.ones(3)})
    with refuses(FeatureError, "A", ": expected features of shape (T, D), got (3,)"):
        open_feature_store(path)


def _sums(store, results, start):
    start.wait()
    results.put([store["A"].sum().item(), os.getpid()])


@forks
def test_forked_processes_read_at_once(tmp_path):
    arrays = {"A": np.random.default_rng(0).standard_normal((500, 64))}
    store = HDF5FeatureStore(write(tmp_path, "hdf5", arrays))
    expected = store["A"].sum().item()  # opens the file before the fork
    results, start = multiprocessing.Queue(), multiprocessing.Event()
    workers = [
        multiprocessing.Process(target=_sums, args=(store, results, start)) for _ in range(3)
    ]
    for worker in workers:
        worker.start()
    start.set()
    assert [results.get(timeout=SECONDS)[0] for _ in workers] == [expected] * 3
    for worker in workers:
        worker.join(SECONDS)
        assert worker.exitcode == 0
    assert store["A"].sum().item() == expected


def test_handle_of_another_process_is_not_used(tmp_path, monkeypatch):
    store = HDF5FeatureStore(write(tmp_path, "hdf5", random_arrays()))
    store["A"]
    first = store._handle
    store["B"]
    assert store._handle is first  # opened once
    monkeypatch.setattr(os, "getpid", lambda: -5)
    store["A"]
    assert store._handle is not first
    assert not first


def test_hdf5_group_with_one_dataset(tmp_path):
    array = np.ones((5, 3))
    arrays = {"A/c3d_features": array, "B/x": array, "B/y": array, "C/x/y": 1}
    store = HDF5FeatureStore(write(tmp_path, "hdf5", arrays))
    assert store.feature_dim == 3
    assert store["A"].shape == (5, 3)
    for name, members in (("B", "['x', 'y']"), ("C", "['x']")):
        expected = f"video '{name}': expected a dataset, or a group with exactly one, got a group "
        with refuses(FeatureError, f"{expected}with {members}"):
            store[name]


def test_hdf5_files_that_cannot_be_read(tmp_path):
    with refuses(FileError, "expected a file ", "none.hdf5, got no such file"):
        HDF5FeatureStore(tmp_path / "none.hdf5")
    with refuses(FileError, "got no such file"):
        HDF5FeatureStore(tmp_path)
    text = tmp_path / "text.h5"
    text.write_text("hello")
    with refuses(FileError, "cannot read ", "text.h5 as HDF5: ", "signature"):
        open_feature_store(text)
    h5py.File(tmp_path / "empty.h5", "w").close()
    with refuses(FileError, "expected a dataset per video, got an empty file"):
        HDF5FeatureStore(tmp_path / "empty.h5")
    path = write(tmp_path, "hdf5", random_arrays())
    path.write_bytes(path.read_bytes()[:-100])
    with refuses(FileError, "cannot read ", "rgb.hdf5 as HDF5: ", "truncated"):
        HDF5FeatureStore(path)


def test_damage_inside_an_hdf5_file(tmp_path):
    path = tmp_path / "rgb.hdf5"
    with h5py.File(path, "w") as file:
        for name in "AB":
            file.create_dataset(name, data=np.arange(60.0).reshape(20, 3), compression="gzip")
        place = file["B"].id.get_chunk_info(0).byte_offset
    content = bytearray(path.read_bytes())
    content[place : place + 16] = b"\xff" * 16
    path.write_bytes(content)
    store = HDF5FeatureStore(path)
    assert store["A"].shape == (20, 3)
    with refuses(FileError, "cannot read ", "rgb.hdf5 as HDF5: "):
        store["B"]


def test_hdf5_needs_h5py(tmp_path, monkeypatch):
    path = write(tmp_path, "hdf5", random_arrays())
    monkeypatch.setitem(sys.modules, "h5py", None)
    with refuses(MissingDependencyError, "reading HDF5 features needs the package h5py"):
        HDF5FeatureStore(path)


@pytest.mark.parametrize("kind", ["npy", "npz", "pt"])
def test_damaged_files(tmp_path, kind):
    store = open_feature_store(write(tmp_path, kind, {"A": np.ones((20, 3))}))
    path = tmp_path / f"A.{kind}"
    for damaged in (path.read_bytes()[:-90], path.read_bytes()[:200], b"hello", b""):
        path.write_bytes(damaged)
        with refuses(FileError, f"cannot read {path}: "):
            store["A"]


@pytest.mark.parametrize(
    ("suffix", "save", "kind", "text"),
    [
        ("npy", np.savez, FileError, "A.npy: an archive of arrays, not one array"),
        ("npz", np.save, FileError, "A.npz: one array, not an archive of arrays"),
        ("npz", np.savez, FeatureError, "with the key 'features', got the keys ['arr_0']"),
    ],
)
def test_numpy_files_of_another_kind(tmp_path, suffix, save, kind, text):
    with (tmp_path / f"A.{suffix}").open("wb") as file:
        save(file, np.ones((2, 3)))
    with refuses(kind, text):
        open_feature_store(tmp_path)


@pytest.mark.parametrize("kind", ["npy", "npz"])
def test_pickled_objects_are_not_loaded(tmp_path, kind):
    write(tmp_path, kind, {"A": np.array([[print]], dtype=object)})
    with refuses(FeatureError, "expected an array of numbers, got pickled objects"):
        open_feature_store(tmp_path)


def test_pt_files_of_any_precision(tmp_path):
    expected = torch.tensor([[0.5, -2.0], [1.0, 4.0]])
    for dtype in (torch.bfloat16, torch.float16, torch.int64):
        saved = expected.to(dtype).requires_grad_(dtype.is_floating_point)
        torch.save(saved, tmp_path / "a.pt")
        assert torch.equal(PtFeatureStore(tmp_path)["a"], expected.to(dtype).float())


class Evil:
    def __reduce__(self):
        return os.system, ("touch evil",)


def test_pt_files_run_no_code_and_hold_one_tensor(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(torch.ones(2, 3), tmp_path / "a.pt")
    torch.save({"features": torch.ones(2, 3)}, tmp_path / "b.pt")
    torch.save(Evil(), tmp_path / "c.pt")
    store = PtFeatureStore(tmp_path)
    with refuses(FeatureError, "b.pt: expected a tensor, got dict."):
        store["b"]
    with refuses(FileError, f"cannot read {tmp_path / 'c.pt'}: "):
        store["c"]
    assert not (tmp_path / "evil").exists()


class TestConcat:
    def stores(self, tmp_path, lengths, rates=(None, None)):
        stores = []
        for index, (length, rate) in enumerate(zip(lengths, rates, strict=True)):
            folder = tmp_path / str(index)
            folder.mkdir()
            array = np.arange(length * (index + 2.0)).reshape(length, -1) + 100 * index
            np.save(folder / "A.npy", array)
            np.save(folder / f"only{index}.npy", array)
            stores.append(NpyFeatureStore(folder, rate))
        return stores

    @pytest.mark.parametrize("lengths", [(5, 5), (5, 4), (4, 5)])
    def test_puts_features_side_by_side(self, tmp_path, lengths):
        one, two = self.stores(tmp_path, lengths)
        both = ConcatFeatureStore([one, two])
        expected = torch.cat([one["A"][: min(lengths)], two["A"][: min(lengths)]], 1)
        assert torch.equal(both["A"], expected)
        assert both.feature_dim == 5
        assert both.seconds_per_feature is None
        assert both.description == ".npy features in folder 0 + .npy features in folder 1"
        assert "A" in both
        assert "only0" not in both
        assert "ConcatFeatureStore([NpyFeatureStore(" in repr(both)
        assert torch.equal(pickle.loads(pickle.dumps(both))["A"], expected)
        with refuses(MissingFeatureError, "in folder 1: expected features of 'only0', got none."):
            both["only0"]

    def test_refuses_what_does_not_fit(self, tmp_path):
        both = ConcatFeatureStore(self.stores(tmp_path, (5, 3), (1.0, 1.0)))
        assert both.seconds_per_feature == 1.0
        with refuses(FeatureError, "video 'A': expected stores that differ by at most one feature"):
            both["A"]
        with refuses(ArgumentError, "ConcatFeatureStore: expected stores to be an integer >= 1"):
            ConcatFeatureStore([])
        other = NpyFeatureStore(tmp_path / "0", 2.0)
        with refuses(ArgumentError, "stores with equal seconds_per_feature, got 1.0, 2.0."):
            ConcatFeatureStore([both.stores[0], other])


def test_half_precision_features_are_summed_in_full():
    features = torch.full((1000, 2), 200.0, dtype=torch.float16)
    assert pool_features(features, 1, duration=10.0).tolist() == [[200.0, 200.0]]


def test_clips_of_a_given_length():
    features = torch.arange(10.0)[:, None]
    pooled = pool_features(features, 4, duration=10.0, clip_seconds=3.0)
    assert pooled[:, 0].tolist() == [1.0, 4.0, 7.0, 9.0]


@pytest.mark.parametrize(
    ("clip_seconds", "wanted"),
    [(None, [0.5, 2.5, 4.5, 6.5]), (1e300, [3.5, 7, 7, 7]), (2.0, [1.5, 5.5, 7, 7])],
)
def test_clips_and_features_of_any_length_have_a_place(clip_seconds, wanted):
    """Beyond the ends of clips and features an integer would have no room."""
    features, options = torch.arange(8.0)[:, None], {"clip_seconds": clip_seconds}
    assert pool_features(features, 4, duration=4.0, **options)[:, 0].tolist() == wanted
    options |= {"duration": 1e-300, "seconds_per_feature": 0.5}
    assert pool_features(features[:1], 4, **options).tolist() == [[0.0]] * 4


@pytest.mark.parametrize("clip_seconds", [1e-300, 1e-9, 1e-4])
def test_clips_that_are_slivers_of_features_are_refused_at_once(clip_seconds):
    expected = f"divide_video: expected clip_seconds of at least 0.0005, got {clip_seconds}."
    features = torch.zeros(8, 2)
    with refuses(ArgumentError, f"{expected} There are 8 features of the 4 s."):
        divide_video(features, duration=4.0, num_clips=4, clip_seconds=clip_seconds)
    assert len(divide_video(features, duration=4.0, num_clips=4, clip_seconds=5e-4)) == 8000


def test_normalized_features_side_by_side(tmp_path):
    parts = {}
    for name, scale in (("clip", 3.0), ("slowfast", 1e-3)):
        arrays = {key: one * scale for key, one in random_arrays().items()}
        arrays["A"][1] = 0
        (tmp_path / name).mkdir()
        write(tmp_path / name, "npz", arrays)
        parts[name] = arrays["A"]
    stores = [open_feature_store(tmp_path / name, 2.0) for name in parts]
    store = ConcatFeatureStore([NormalizedFeatureStore(one) for one in stores])
    # Each part on its own, so that no part drowns the other: moment_detr's way.
    expected = [
        np.divide(one, norm, out=np.zeros_like(one), where=norm > 0)
        for one in parts.values()
        for norm in [np.linalg.norm(one, axis=1, keepdims=True)]
    ]
    np.testing.assert_allclose(store["A"], np.concatenate(expected, axis=1), rtol=1e-5)
    assert (store.feature_dim, store.seconds_per_feature) == (6, 2.0)
    assert "L2-normalized" in store.description
    assert "NormalizedFeatureStore(NpzFeatureStore(" in repr(store)
    assert "A" in store
    assert "Z" not in store
    normalized = pickle.loads(pickle.dumps(NormalizedFeatureStore(stores[0])))
    assert isinstance(normalized, FeatureStore)
    with pytest.raises(MissingFeatureError):
        normalized["Z"]


def test_open_feature_store_tells_what_it_found(tmp_path):
    def told(found, path=tmp_path):
        expected = "expected an HDF5 file, or a folder of .npy, .npz or .pt files, got"
        with refuses(FileError, f"{expected} {found}"):
            open_feature_store(path)

    told("nothing at ", tmp_path / "none")
    told("0 entries (empty) in ")
    (tmp_path / "a.txt").write_text("")
    told("1 entries (.txt) in ")
    with refuses(FileError, "expected a folder with .npy files, got 1 entries (.txt"):
        NpyFeatureStore(tmp_path)
    with refuses(FileError, "cannot read the folder ", "none: No such file"):
        NpzFeatureStore(tmp_path / "none")
    told("the file ", tmp_path / "a.txt")
    write(tmp_path, "npy", random_arrays())
    write(tmp_path, "npz", random_arrays())
    told(".npy and .npz files in ")
    # HDF5 is known by its first bytes too.
    os.rename(write(tmp_path, "hdf5", random_arrays()), tmp_path / "features")
    assert isinstance(open_feature_store(tmp_path / "features"), HDF5FeatureStore)


def pool_by_loop(features, num_clips, duration, stride):
    """The definition, with exact edges: clip by clip, feature by feature."""
    stride = duration / len(features) if stride is None else stride
    clip_seconds = duration / num_clips
    pooled, ambiguous = [], []
    for clip in range(num_clips):
        centres = [(t + 0.5) * stride for t in range(len(features))]
        places = [centre / clip_seconds for centre in centres]
        inside = [features[t] for t, place in enumerate(places) if math.floor(place) == clip]
        near_edge = any(abs(place - edge) < 1e-9 for place in places for edge in (clip, clip + 1))
        middle = (clip + 0.5) * clip_seconds
        gaps = sorted((abs(centre - middle), t) for t, centre in enumerate(centres))
        if not inside:
            near_edge |= len(gaps) > 1 and gaps[1][0] - gaps[0][0] < 1e-9
            inside = [features[gaps[0][1]]]
        pooled.append(torch.stack(inside).mean(dim=0))
        ambiguous.append(near_edge)
    return torch.stack(pooled), torch.tensor(ambiguous)


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.floats(0.5, 100),
    st.one_of(st.none(), st.floats(0.96, 1.04)),
)
def test_pooling_equals_a_loop(num_features, num_clips, duration, error):
    torch.manual_seed(0)
    features = torch.randn(num_features, 2, dtype=torch.float64)
    stride = None if error is None else duration / num_features * error
    pooled = pool_features(features, num_clips, duration=duration, seconds_per_feature=stride)
    expected, ambiguous = pool_by_loop(features, num_clips, duration, stride)
    assert pooled.shape == (num_clips, 2)
    torch.testing.assert_close(pooled[~ambiguous], expected[~ambiguous])


def test_a_centre_on_an_edge_counts_for_the_later_clip():
    # Centres at 0.5, 1.5, 2.5 of 3; two clips meet at 1.5.
    features = torch.tensor([[1.0], [2.0], [4.0]])
    assert pool_features(features, 2, duration=7.0).tolist() == [[1.0], [3.0]]
    # Features that divide the video equally do so whatever rounding its duration brings.
    for tenths in range(1, 500):
        assert pool_features(features, 2, duration=tenths / 10).tolist() == [[1.0], [3.0]]
    # The video's own end belongs to its last clip; what comes after belongs to none.
    late = pool_features(features, 1, duration=2.5, seconds_per_feature=1.0)
    torch.testing.assert_close(late, torch.tensor([[7 / 3]]))
    past = pool_features(features, 1, duration=2.4, seconds_per_feature=1.0)
    torch.testing.assert_close(past, torch.tensor([[1.5]]))


def test_pooling_keeps_dtype_and_gradient_and_input():
    features = torch.randn(7, 3, dtype=torch.float64, requires_grad=True)
    copy = features.detach().clone()
    pooled = pool_features(features, 5, duration=3.0)
    pooled.sum().backward()
    assert pooled.dtype == torch.float64
    assert torch.equal(features.detach(), copy)
    assert (features.grad > 0).all()


def test_a_wrong_stride_is_an_error_that_names_both():
    features = torch.ones(100, 30)
    expected = "features that cover the 30 s of the video, got 100 s (100 features of 1 s)."
    for width, hint in (
        (3, "They would fit with seconds_per_feature = 0.3."),
        (
            30,
            "They would fit with seconds_per_feature = 0.3, or transposed, as the other axis "
            "has size 30.",
        ),
    ):
        with refuses(FeatureError, f"pool_features: expected {expected} {hint}"):
            pool_features(features[:, :width], 8, duration=30.0, seconds_per_feature=1.0)
    # Within 2 features, or within 5 %.
    pool_features(features, 8, duration=95.3, seconds_per_feature=1.0)
    pool_features(features, 8, duration=105.2, seconds_per_feature=1.0)
    pool_features(features[:5], 8, duration=3.0, seconds_per_feature=1.0)
    for duration, count in ((95.2, 100), (105.3, 100), (2.9, 5), (7.1, 5)):
        with refuses(FeatureError, "expected features that cover"):
            pool_features(features[:count], 8, duration=duration, seconds_per_feature=1.0)


@pytest.mark.parametrize(
    ("kind", "change", "text"),
    [
        (ShapeError, {"features": torch.ones(3)}, "features of shape (T, D), got (3,)"),
        (ArgumentError, {"features": torch.ones(4, 3).long()}, "features of a floating dtype"),
        (ArgumentError, {"features": torch.ones(0, 3)}, "at least one feature, got none"),
        (ArgumentError, {"num_clips": 0}, "num_clips to be an integer >= 1, got 0"),
        (ArgumentError, {"duration": 0}, "duration in (0, inf), got 0"),
        (ArgumentError, {"clip_seconds": 0}, "clip_seconds in (0, inf), got 0"),
        (ArgumentError, {"seconds_per_feature": 0}, "seconds_per_feature in (0, inf), got 0"),
        (SizeLimitError, {"num_clips": 10**12}, "features of clips of at most"),
    ],
)
def test_pooling_errors(kind, change, text):
    with refuses(kind, f"pool_features: expected {text}"):
        pool_features(**{"features": torch.ones(4, 3), "num_clips": 4, "duration": 1.0, **change})


class TestLinks:
    def folders(self, tmp_path):
        for name in ("features", "elsewhere"):
            (tmp_path / name).mkdir()
            np.save(tmp_path / name / "A.npy", np.ones((2, 3)))
        return tmp_path / "features", tmp_path / "elsewhere"

    def test_out_of_a_folder_are_followed_only_if_allowed(self, tmp_path):
        folder, elsewhere = self.folders(tmp_path)
        (folder / "B.npy").symlink_to(elsewhere / "A.npy")
        store = open_feature_store(folder)
        with refuses(FileError, "B.npy: expected a file in its folder, got a link to "):
            store["B"]
        assert open_feature_store(folder, follow_links=True)["B"].shape == (2, 3)

    def test_within_a_folder_and_to_it_are_followed(self, tmp_path):
        folder, _ = self.folders(tmp_path)
        (folder / "B.npy").symlink_to("A.npy")
        (tmp_path / "link").symlink_to(folder, target_is_directory=True)
        assert open_feature_store(tmp_path / "link")["B"].shape == (2, 3)

    def test_pipes_are_not_waited_for(self, tmp_path):
        folder, _ = self.folders(tmp_path)
        os.mkfifo(folder / "0.npy")
        with refuses(FileError, "0.npy: it is not a file."):
            open_feature_store(folder)


class TestThreads:
    """Eight that are the first to read a store, at once."""

    def read(self, store, number, start):
        start.wait(SECONDS)
        for name in (f"v{number}", "shared", f"v{number}"):
            assert name in store
            assert (store[name] == len(name) + number * (name != "shared")).all()
            assert store.attributes_of(name) == {"source": f"{name}.mp4"}
        assert len(store.video_ids) == 9
        return store.attributes["model"]

    def write(self, folder):
        with h5py.File(folder / "a.h5", "w") as file:
            file.attrs["model"] = np.bytes_(b"vgg")
            for name in [*(f"v{number}" for number in range(8)), "shared"]:
                value = 6 if name == "shared" else len(name) + int(name[1:])
                file.create_dataset(name, data=np.full((3, 2), value, np.float32))
                file[name].attrs["source"] = np.bytes_(f"{name}.mp4".encode())
        return folder / "a.h5"

    def test_read_the_same_and_open_the_file_once(self, tmp_path, monkeypatch):
        store = open_feature_store(self.write(tmp_path))
        opened = []

        class SlowFile(h5py.File):
            def __init__(self, *args):
                super().__init__(*args)
                opened.append(self)
                time.sleep(0.05)  # time for others to begin, too

        monkeypatch.setattr(h5py, "File", SlowFile)
        start = threading.Barrier(8)
        with ThreadPoolExecutor(8) as pool:
            found = [pool.submit(self.read, store, number, start) for number in range(8)]
            assert {one.result(SECONDS) for one in found} == {"vgg"}
        assert len(opened) == 1

    @pytest.mark.parametrize("wrap", [lambda one: one, NormalizedFeatureStore])
    def test_open_stores_of_one_file(self, tmp_path, wrap):
        path, start = self.write(tmp_path), threading.Barrier(8)

        def read(number):
            start.wait(SECONDS)
            return wrap(open_feature_store(path))[f"v{number}"].shape

        with ThreadPoolExecutor(8) as pool:
            assert set(pool.map(read, range(8))) == {(3, 2)}

    @forks
    def test_a_fork_while_others_open_reads_too(self, tmp_path):
        path = self.write(tmp_path)
        store, stop = open_feature_store(path), threading.Event()

        def open_for_ever():
            while not stop.is_set():
                open_feature_store(path)

        with ThreadPoolExecutor(2) as pool:
            others = [pool.submit(open_for_ever) for _ in range(2)]
            try:
                for _ in range(5):
                    child = multiprocessing.Process(target=store.__getitem__, args=("v1",))
                    child.start()
                    child.join(SECONDS)
                    assert child.exitcode == 0
            finally:
                stop.set()
            for one in others:
                one.result(SECONDS)
