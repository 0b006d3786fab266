"""Values of the wrong kind in the right places: a result that makes sense, or our error."""

import json
import math
import os
import tempfile
from itertools import product
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
import pytest
import torch
from helpers.datasets import write_store
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

import tmapdiff
from tmapdiff.conversion import convert_features
from tmapdiff.data._video_ids import (
    _file_name,
    check_video_id,
    hdf5_key,
    is_video_id,
    video_id_of,
    video_id_of_key,
)
from tmapdiff.errors import AnnotationError, TmapdiffError
from tmapdiff.models import MapDiffusionDecoder, MultimodalEncoder
from tmapdiff.video import FeatureStoreWriter

pytestmark = pytest.mark.exhaustive
quick = settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

numbers = st.one_of(
    st.floats(),
    st.integers(),
    st.sampled_from([0, -1, 1, 10**9, 10**400, 1e308, 5e-324, math.nan, math.inf, True, False]),
)
scalars = st.one_of(st.none(), numbers, st.text(max_size=8))
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=8,
)
seconds = st.one_of(st.floats(0, 200), numbers)
pairs = st.lists(st.one_of(st.tuples(seconds, seconds), values), max_size=3)
NAMES = ["AO8RW", "v_1", "../x", "..", "NUL", "a/b", "a:b", "Wait... what", "x" * 300, "\ud800"]
ids = st.one_of(st.sampled_from(NAMES), scalars)
sentences = st.one_of(st.just("a person opens the door."), scalars)


def record(**fields):
    """Objects with these fields, each of them at times missing or something else."""
    mixed = {name: st.one_of(value, value, value, values) for name, value in fields.items()}
    return st.fixed_dictionaries({}, optional=mixed) | st.fixed_dictionaries(mixed) | values


def check(annotations):
    for item in annotations:
        assert 0 < item.duration < math.inf
        assert all(0 <= start < end <= item.duration for start, end in item.moments)
        assert item.query.strip()
    tmapdiff.Vocabulary.from_sentences(
        item.query for item in annotations if any(map(str.isalnum, item.query))
    )


def reads(load, check=check):
    """Read something; what we raise on purpose is fine, in one line."""
    try:
        found = load()
    except TmapdiffError as error:
        assert len(str(error).splitlines()) == 1  # noqa: PT017
    else:
        check(found)


queries = record(qid=scalars, query=sentences, vid=ids, duration=seconds, relevant_windows=pairs)


@quick
@given(st.lists(queries, max_size=3))
def test_moment_jsonl(tmp_path, records):
    path = tmp_path / "lines.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in records))
    reads(lambda: tmapdiff.load_moment_jsonl(path))


names = ids.filter(lambda one: isinstance(one, str))
lists = {"timestamps": pairs, "sentences": st.lists(sentences, max_size=3)}
videos = record(duration=seconds, num_frames=numbers, fps=numbers, **lists)


@quick
@given(values | st.dictionaries(names, videos, max_size=3))
def test_activitynet_and_tacos(tmp_path, content):
    path = tmp_path / "train.json"
    path.write_text(json.dumps(content))
    reads(lambda: tmapdiff.load_activitynet_captions(path))
    reads(lambda: tmapdiff.load_tacos(path))


segments = st.lists(st.tuples(st.integers(-1, 6), st.integers(-1, 6)), max_size=4)
counts = {"annotation_id": numbers, "num_segments": numbers, "times": segments}


@quick
@given(st.lists(record(video=ids, description=sentences, **counts), max_size=3))
def test_didemo(tmp_path, records):
    (tmp_path / "val_data.json").write_text(json.dumps(records))
    reads(lambda: tmapdiff.data.keep_consensus(tmapdiff.load_didemo(tmp_path, "val")))


PLACES = st.text(st.sampled_from("abNULCO1:./\\ \0\n\x7f~$%-\ud800\u202e"), max_size=8)
DEVICES = st.builds(str.__add__, st.sampled_from(["con", "Nul", "COM1", "aux", "d:"]), PLACES)
ENDS = st.text("ab:%=~253A.", max_size=8)
ESCAPES = st.builds(str.__add__, st.sampled_from(["%=", "%~", "%%=", "%=%25", "._"]), ENDS)


@settings(deadline=None, max_examples=400)
@given(st.one_of(PLACES, DEVICES, ESCAPES, st.text(max_size=300)))
def test_ids_name_files_in_a_folder_on_any_system(video_id):
    try:
        check_video_id("who", video_id)
    except AnnotationError as error:
        assert len(str(error).splitlines()) == 1  # noqa: PT017
        # Nothing is refused but what can leave a folder.
        assert set(video_id) & set("/\\\0") or video_id in ("", ".", "..")
        return
    for suffix in (".npy", ".npz", ".pt"):
        name = _file_name(video_id, suffix)
        for folder in (PurePosixPath("/features"), PureWindowsPath("X:/features")):
            assert (folder / name).parent == folder
        assert name.endswith(suffix)
        assert not name.startswith(".")
        assert not set(name) & set('<>:"|?*\x7f\n')
        assert name.split(".")[0].rstrip().upper() not in {"CON", "PRN", "AUX", "NUL", "COM1"}
        assert video_id_of(name, suffix) == video_id
    assert video_id_of_key(hdf5_key(video_id)) == video_id
    hdf5_key(video_id).encode()


@settings(deadline=None, max_examples=12)
@given(
    st.sets(st.one_of(PLACES, DEVICES, ESCAPES), min_size=1, max_size=4),
    st.sampled_from(["npy", "npz", "pt"]),
)
def test_ids_of_any_kind_are_read_as_they_were_written(video_ids, format):
    """Through the writer and folders; what may be no id is refused by all."""
    arrays = {one: np.full((2, 1), len(one), np.float32) for one in video_ids}
    with tempfile.TemporaryDirectory() as scratch:
        first, second, third = (Path(scratch) / name for name in ("a.h5", "b", "c.h5"))
        with FeatureStoreWriter(first, {}) as writer:
            for one, array in arrays.items():
                reads(lambda one=one, array=array: writer.write(one, array, {}), lambda none: None)
            writer.finish()
        assert set(os.listdir(scratch)) <= {"a.h5", ".a.h5.lock"}
        if not (fine := {one for one in video_ids if is_video_id(one)}):
            return
        for source, target in ((first, second), (second, third)):
            kind = format if target == second else "hdf5"
            report = convert_features(source, target, format=kind)
            assert (set(report.converted), report.skipped) == (fine, ())
            store = tmapdiff.open_feature_store(target)
            assert set(store.video_ids) == fine
            for one in video_ids:
                assert (one in store) == (one in fine)
            for one in fine:
                np.testing.assert_array_equal(store[one], arrays[one])
            del store


dtypes = st.sampled_from(["f2", ">f4", "f8", "i1", "u8", "c8", "?", "U2", "M8[s]"])
shapes = npst.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)


@quick
@given(npst.arrays(dtypes, shapes), st.sampled_from(["npy", "npz", "hdf5"]))
def test_arrays_of_any_kind(tmp_path, array, kind):
    for old in tmp_path.iterdir():
        old.unlink()
    try:
        place = write_store(tmp_path, kind, {"A": array})
    except TypeError:
        return  # nothing that HDF5 holds

    def check(features):
        assert features.dtype == torch.float32
        assert features.isfinite().all()
        with np.errstate(over="ignore"):
            expected = array.reshape(len(array), -1).astype(np.float32)
        np.testing.assert_array_equal(features, expected)

    reads(lambda: tmapdiff.open_feature_store(place)["A"], check)


HOSTILE = [0, -1, 1, 3, 10**5, 10**9, 10**18, 0.5, math.nan, True, None, "4", ()]
FIELDS = {
    MultimodalEncoder: {
        **{"num_clips": 4, "num_anchors": 2, "num_scales": 2, "clip_channels": 2},
        **{"vocabulary_size": 9, "channels": 4, "word_channels": 4, "num_text_layers": 1},
    },
    MapDiffusionDecoder: {
        **{"num_clips": 4, "num_anchors": 2, "num_scales": 2, "feature_channels": 2},
        **{"channels": 4, "time_channels": 4, "kernel_sizes": [3], "num_groups": 2},
    },
    tmapdiff.MapScheduler: {"num_train_timesteps": 10, "beta_start": 0.1, "signal_scale": 1.0},
}


@pytest.mark.parametrize("kind", FIELDS, ids=lambda kind: kind.__name__)
def test_fields_of_configurations(tmp_path, kind):
    (tmp_path / "diffusion_pytorch_model.safetensors").write_bytes(bytes(8))
    wrong = {}
    for field, value in product(FIELDS[kind], HOSTILE):
        (tmp_path / kind.config_name).write_text(json.dumps({**FIELDS[kind], field: value}))
        try:
            reads(lambda: kind.from_pretrained(tmp_path), lambda model: None)
        except Exception as error:
            wrong[field, value] = error
    assert wrong == {}
