import h5py
import numpy as np
import pytest
from helpers.assertions import kinds, refuses
from helpers.datasets import query_line, write_lines
from helpers.videos import write_video

from tmapdiff.errors import ArgumentError, FileError
from tmapdiff.inspection import inspect

RANDOM = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)


@pytest.fixture
def store(tmp_path):
    """Features of three videos of 10, 20 and 30 s, 2 a second."""
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file.attrs.update({"seconds_per_feature": 0.5, "model": np.bytes_(b"vgg")})
        for index, name in enumerate(("a", "b", "c"), start=1):
            file[name] = np.tile(RANDOM + index, (1, 1))[: 20 * index].astype(np.float16)
            file[name].attrs["duration"] = 10.0 * index
    return tmp_path / "f.h5"


@pytest.fixture
def queries(tmp_path):
    """Write a file of queries, each about a whole video, given the videos' durations."""

    def write(name="queries.jsonl", **durations):
        lines = (query_line(one, one, [[0, end]], duration=end) for one, end in durations.items())
        return write_lines(tmp_path / name, lines)

    return write


def test_facts(store):
    found = inspect(store)
    assert (found.kind, found.findings) == ("features", ())
    lengths = {"features": 120, "features per video": "20 to 60, median 40"}
    about = {"format": "HDF5", "videos": 3, "width": 4, "seconds per feature": 0.5, "model": "vgg"}
    assert found.facts == {"f.h5": {**about, **lengths}}


DAMAGE = np.bytes_(b"it ends at 3 s of 20 s")
# Video, place (an index of features, an attribute, or None for a new video), value, finding.
PLANTED = [
    ("b", (3, 1), np.nan, "features that cannot be used", ("b",)),
    ("d", None, np.zeros((0, 4)), "features that cannot be used", ("d",)),
    ("d", None, np.ones((5, 3)), "features that cannot be used", ("d",)),
    ("b", ..., 0, "features of zeros", ("b",)),
    ("b", "damage", DAMAGE, "damaged videos", ("b (it ends at 3 s of 20 s)",)),
    ("b", "duration", 40.0, "wrong rate", ("b (20 s of 40 s)",)),
]


@pytest.mark.parametrize(("video", "place", "value", "kind", "items"), PLANTED)
def test_each_planted_fault_is_found_and_nothing_else(store, video, place, value, kind, items):
    with h5py.File(store, "a") as file:
        if place is None:
            file[video] = value
        elif isinstance(place, str):
            file[video].attrs[place] = value
        else:
            file[video][place] = value
    assert kinds(inspect(store)) == {kind: items}


def test_what_an_extraction_left_behind_is_found(store):
    parts = store.with_name("f.h5.parts")
    parts.mkdir()
    np.savez(parts / "z.npz", features=RANDOM)
    assert kinds(inspect(store)) == {"unfinished store": ("z",)}


def test_a_damaged_file_in_a_folder_is_found(tmp_path):
    for name in "ab":
        np.save(tmp_path / f"{name}.npy", RANDOM)
    (tmp_path / "b.npy").write_bytes((tmp_path / "b.npy").read_bytes()[:200])
    found = inspect(tmp_path)
    assert found.facts[tmp_path.name]["format"] == "Npy"
    assert kinds(found) == {"features that cannot be used": ("b",)}


def test_ids_that_are_on_one_side_only_both_ways(queries, store):
    path = queries(a=10.0, b=20.0, x=5.0)
    wanted = {"missing features": ("x",), "features without annotations": ("c",)}
    assert kinds(inspect(store, path)) == wanted
    assert kinds(inspect(path, store)) == wanted


@pytest.mark.parametrize(("duration", "fits"), [(20.0, True), (20.9, True), (21.2, False)])
def test_features_that_do_not_cover_the_annotated_duration(queries, store, duration, fits):
    # Training refuses what differs by more than two features and more than 5 %.
    found = inspect(queries(a=10.0, b=duration, c=30.0), store)
    assert kinds(found) == ({} if fits else {"wrong rate": ("b (20 s of 21.2 s)",)})
    for one in found.findings:
        assert one.text.endswith("they would fit at 0.53 s per feature")


def test_without_a_rate_there_is_nothing_to_cover(queries, tmp_path):
    np.save(tmp_path / "a.npy", RANDOM)
    path = queries(a=1000.0)
    assert inspect(path, tmp_path).findings == ()
    found = inspect(path, tmp_path, seconds_per_feature=1.0)
    assert kinds(found) == {"wrong rate": ("a (64 s of 1000 s)",)}


def test_videos_against_features(store, tmp_path):
    (tmp_path / "videos").mkdir()
    for name, seconds in (("a", 10), ("b", 10), ("d", 1)):
        write_video(tmp_path / "videos" / f"{name}.mp4", [0, seconds])
    found = inspect(store, tmp_path / "videos")
    assert kinds(found) == {"missing features": ("d",), "wrong rate": ("b (20 s of 10 s)",)}


def test_a_place_of_no_known_kind_is_refused(tmp_path):
    with refuses(FileError, f"inspect: expected something at {tmp_path / 'no'}, got nothing."):
        inspect(tmp_path / "no")
    (tmp_path / "notes.md").write_text("")
    with refuses(FileError, "videos or a pipeline at", "got notes.md."):
        inspect(tmp_path)
    with refuses(FileError, "got notes.md."):
        inspect(tmp_path / "notes.md")
    (tmp_path / "odd").write_bytes(b"\x89HDF\r\n\x1a\n")
    with refuses(FileError, "cannot read"):
        inspect(tmp_path / "odd")


def test_two_stores_cannot_be_compared(store):
    with refuses(ArgumentError, "expected something that features can be compared with, got"):
        inspect(store, store)


def test_transposed_features_are_found(queries, tmp_path):
    np.save(tmp_path / "a.npy", np.ones((40, 8), np.float32))
    found = inspect(tmp_path, queries("q/lines.jsonl", a=8.0), seconds_per_feature=1.0)
    assert kinds(found)["transposed features"] == ("a",)
    # A width that fits one of several videos only may do so by chance.
    np.save(tmp_path / "b.npy", np.ones((48, 8), np.float32))
    found = inspect(tmp_path, queries("q/lines.jsonl", a=8.0, b=24.0), seconds_per_feature=1.0)
    assert kinds(found).keys() == {"wrong rate"}
