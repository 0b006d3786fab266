"""A string, boolean or None in place of a number is rejected immediately."""

import inspect
import pkgutil
import re
from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from typing import Any, get_args

import numpy as np
import pytest
import torch
from helpers.assertions import refuses
from helpers.fields import GRID
from helpers.pipelines import make_localizer

import tmapdiff
from tmapdiff import Vocabulary
from tmapdiff.calibration import CalibrationMetrics, PlattCalibrator
from tmapdiff.corpus import CorpusOptions
from tmapdiff.data import (
    ActionTimelineFeatures,
    Annotation,
    AnnotationSet,
    CharadesVideo,
    Cue,
    HDF5FeatureStore,
    MomentDataset,
    NpyFeatureStore,
    NpzFeatureStore,
    Prediction,
    PtFeatureStore,
    SyntheticActivities,
    SyntheticDiDeMo,
    SyntheticVideos,
    TextTrackFeatures,
)
from tmapdiff.demo import DemoLimits
from tmapdiff.errors import TmapdiffError
from tmapdiff.layers import (
    ConcatConditioning,
    GatedConv2d,
    GatedConv2dStack,
    MapTransformerLayer,
    MomentPositionEmbedder,
    MultiplyConditioning,
    StylizationBlock,
    TimestepEmbedder,
)
from tmapdiff.maps import MapGrid
from tmapdiff.metrics import DiDeMoMetrics, LocalizationMetrics, SetMetrics
from tmapdiff.models import (
    MS2DTAN,
    MapDiffusionDecoder,
    MapFeatureBuilder,
    MomentLocalizer,
    MultimodalEncoder,
    SimilarityEncoder,
    SimilarityLocalizer,
)
from tmapdiff.models.encoder import TextEncoder
from tmapdiff.models.map_decoders import ConvMapDecoder, TransformerMapDecoder
from tmapdiff.pipelines import MomentLocalizationPipeline
from tmapdiff.presets import PRESETS
from tmapdiff.recipes import Recipe, SamplingOptions
from tmapdiff.schedulers import MapScheduler
from tmapdiff.training import Trainer, TrainingConfig
from tmapdiff.video import VideoFeatures

ENCODER = {**GRID, "vocabulary_size": 7, "clip_channels": 4, "word_channels": 4, "channels": 4}
WIDTHS = {"feature_channels": 4, "channels": 4, "time_channels": 4, "num_groups": 2}
DECODER = {**GRID, **WIDTHS}
ITEM = Annotation(0, "v", "a door", 10.0, ((1.0, 2.0),))
VIDEO = {"duration": 10.0, "actions": ((0, 1.0, 2.0),)}


class Store(dict):
    description, feature_dim, seconds_per_feature = "features in memory", 4, None
    attributes_of = staticmethod(lambda video_id: {})


STORE = Store(v=torch.zeros(8, 4))
WORDS = Vocabulary(["a", "door", "b", "c", "d"])
DATASET = MomentDataset(AnnotationSet([ITEM, replace(ITEM, qid=1)]), STORE, WORDS, 8)
# Other required arguments, besides numbers.
MADE = {
    ActionTimelineFeatures: {"videos": {"v": CharadesVideo(**VIDEO)}, "num_classes": 1},
    Annotation: vars(ITEM),
    CalibrationMetrics: {},
    CharadesVideo: VIDEO,
    ConcatConditioning: {"feature_channels": 4, "channels": 4},
    ConvMapDecoder: {**WIDTHS, "kernel_sizes": [3]},
    CorpusOptions: {},
    Cue: {"start": 1.0, "end": 2.0, "text": "a door"},
    DemoLimits: {},
    DiDeMoMetrics: {},
    GatedConv2d: {"in_channels": 4, "out_channels": 4, "kernel_size": 3},
    GatedConv2dStack: {"in_channels": 4, "channels": 4, "kernel_sizes": [3]},
    HDF5FeatureStore: {"path": "features.h5"},
    LocalizationMetrics: {},
    SetMetrics: {},
    MS2DTAN: {"encoder_config": ENCODER, "kernel_sizes": [3]},
    MapDiffusionDecoder: {**DECODER, "kernel_sizes": [3]},
    MapFeatureBuilder: {"grid": MapGrid(**GRID), "channels": 4},
    MapGrid: GRID,
    MapScheduler: {},
    MapTransformerLayer: {"channels": 4, "time_channels": 4, "num_heads": 2, "num_groups": 2},
    MomentDataset: {
        "annotations": AnnotationSet([ITEM]),
        "store": STORE,
        "vocabulary": WORDS,
        "num_clips": 8,
    },
    MomentLocalizationPipeline: {"localizer": make_localizer(), "vocabulary": WORDS},
    MomentLocalizer: {
        "encoder_config": ENCODER,
        "decoder_config": {**DECODER, "kernel_sizes": [3]},
    },
    MomentPositionEmbedder: {"channels": 4},
    MultimodalEncoder: ENCODER,
    MultiplyConditioning: {"feature_channels": 4, "channels": 4},
    NpyFeatureStore: {"folder": "npy"},
    NpzFeatureStore: {"folder": "npz"},
    PlattCalibrator: {},
    Prediction: {"qid": 0, "query": "a", "video_id": "v", "windows": ((1.0, 2.0, 0.5),)},
    PtFeatureStore: {"folder": "pt"},
    Recipe: {},
    SamplingOptions: {},
    SimilarityEncoder: {**GRID, "clip_channels": 4},
    SimilarityLocalizer: {**GRID, "clip_channels": 4},
    StylizationBlock: {"channels": 4, "time_channels": 4, "num_groups": 2},
    SyntheticActivities: {"num_videos": 2},
    SyntheticDiDeMo: {"num_videos": 2},
    SyntheticVideos: {"num_videos": 1},
    TextTrackFeatures: {"tracks": {"v": [Cue(1.0, 2.0, "a")]}, "encoder": None},
    TextEncoder: {"vocabulary_size": 7, "word_channels": 4, "channels": 4},
    TimestepEmbedder: {"time_channels": 4},
    Trainer: {
        "model": make_localizer(encoder={"clip_channels": 4}),
        "dataset": DATASET,
        "config": PRESETS["nano"].training,
    },
    TrainingConfig: vars(PRESETS["nano"].training),
    TransformerMapDecoder: {**WIDTHS, "num_layers": 1, "num_heads": 2},
    VideoFeatures: {"features": torch.zeros(8, 4), "seconds_per_feature": 1.0, "duration": 8.0},
}
# Classes that only the library creates.
RESULTS = {
    "SchedulerRun",
    "ExportReport", "ExtractionReport",
    "AnnotationReport", "CorpusReport", "DenoisingStep", "Evaluation",
    "EncoderMatch", "LocalizedMoment", "MomentBatch", "MomentLocalizationOutput", "MomentSample",
    "MS2DTANExperiment", "Progress", "Results", "SampledFrame", "ShapeAction", "ShapeVideo",
    "VideoInfo",
}  # fmt: skip
# Need unavailable arguments, or are checked elsewhere (grids by `MapGrid`).
OTHERWISE = {"FeatureStoreWriter", "OnnxLocalizer", "Preset", "TransformersTextEncoder"}
ARRAYS = ([1], np.ones(2), torch.ones(2))
WRONG = ("1", "a", b"1", True, np.bool_(True), None, 1j, object(), {}, *ARRAYS)


def numeric_fields(kind: type) -> Iterator[tuple[str, str]]:
    for field in inspect.signature(kind).parameters.values():
        note = field.annotation
        text = note.__name__ if isinstance(note, type) and not get_args(note) else str(note)
        if re.search(r"\b(int|float)\b", text):
            yield field.name, text


CASES = [
    pytest.param(kind, name, note, id=f"{kind.__name__}.{name}")
    for kind in MADE
    for name, note in numeric_fields(kind)
    if name != "qid"  # a number or a text
]


def holders(note: str, value: Any, wrong: Any) -> Iterator[Any]:
    """Values of the wrong type for a field, also nested ones."""
    nested = "Sequence" in note or "tuple" in note
    listed = any(wrong is one for one in ARRAYS)
    if not (wrong is None and "None" in note) and not (nested and listed):
        yield wrong
    if nested and value:
        yield from ([*value[:-1], one] for one in inside(value[-1], wrong))


def inside(value: Any, wrong: Any) -> Iterator[Any]:
    if not isinstance(value, tuple | list):
        yield wrong
        return
    for place in range(len(value)):
        yield (*value[:place], wrong, *value[place + 1 :])


@pytest.mark.parametrize(("kind", "name", "note"), CASES)
def test_a_wrong_kind_of_number_is_refused_at_once(kind, name, note, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fields = dict(MADE[kind])
    if kind is Trainer:
        fields["output_dir"] = tmp_path
    value = fields.get(name, inspect.signature(kind).parameters[name].default)
    numbers = (1.5, float("nan")) if re.match("int", note) else (float("nan"), float("inf"))
    for wrong in (*WRONG, *numbers):
        for given in holders(note, value, wrong):
            with pytest.raises(TmapdiffError) as caught:
                kind(**{**fields, name: given})
            assert "\n" not in str(caught.value)


SWITCHES = [
    pytest.param(kind, name, id=f"{kind.__name__}.{name}")
    for kind, fields in MADE.items()
    for name, field in inspect.signature(kind).parameters.items()
    # Arguments of a store and a trainer, which no file configures.
    if field.annotation in (bool, "bool") and kind.__module__ != "tmapdiff.data.features"
    if kind is not Trainer
]


@pytest.mark.parametrize(("kind", "name"), SWITCHES)
def test_a_switch_is_true_or_false(kind, name):
    """The string "false", which a file may contain, would be truthy."""
    for wrong in ("false", "", None, 2, 1.0, float("nan"), [], [1], np.ones(2)):
        with refuses(TmapdiffError, f"expected {name} to be True or False"):
            kind(**{**MADE[kind], name: wrong})


def test_a_number_of_samples_that_never_ends_is_refused():
    with refuses(TmapdiffError, "num_samples"):
        make_localizer(num_samples=10**18)


@pytest.mark.parametrize("kind", [*MADE], ids=lambda kind: kind.__name__)
def test_what_is_right_is_taken(kind, tmp_path):
    if kind in (HDF5FeatureStore, NpyFeatureStore, NpzFeatureStore, PtFeatureStore):
        pytest.skip("there are no files")
    kind(**MADE[kind], **({"output_dir": tmp_path} if kind is Trainer else {}))


def test_no_public_class_with_numbers_is_left_out():
    modules = [
        import_module(f"tmapdiff.{one.name}")
        for one in pkgutil.iter_modules(tmapdiff.__path__)
        if not one.name.startswith("_") and one.name not in ("cli", "kernels")
    ]
    public = {
        value
        for module in modules
        for name in getattr(module, "__all__", vars(module))
        for value in [getattr(module, name)]
        if inspect.isclass(value) and value.__module__.startswith(module.__name__)
        if not issubclass(value, Exception) and not name.startswith("_")
    }
    known = {kind.__name__ for kind in MADE} | RESULTS | OTHERWISE
    missing = {one.__name__ for one in public if any(numeric_fields(one))} - known
    assert not missing


@pytest.mark.parametrize("number", [np.float32(0.25), np.float64(0.25), torch.tensor(0.25)])
def test_numbers_of_numpy_and_torch_are_saved_as_numbers(number, tmp_path):
    """A configuration is JSON: with float32 values, writing it would fail much later."""
    count = np.int64(8)
    MapScheduler(signal_scale=number).save_pretrained(tmp_path / "scheduler")
    assert MapScheduler.from_pretrained(tmp_path / "scheduler").config.signal_scale == 0.25
    model = MS2DTAN({**ENCODER, "num_clips": count, "dropout": number}, nms_threshold=number)
    pipe = MomentLocalizationPipeline(model, WORDS, fps=number, durations=[number])
    pipe.save_pretrained(tmp_path / "pipeline")
    read = MomentLocalizationPipeline.from_pretrained(tmp_path / "pipeline")
    assert read.localizer.config.nms_threshold == read.config.fps == 0.25
    assert read.localizer.encoder.config.num_clips == 8


OPTIONS = (
    "num_inference_steps", "num_samples", "top_n", "nms_threshold", "eta", "batch_size",
)  # fmt: skip


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("kind", [MomentLocalizer, MS2DTAN])
def test_options_of_a_pipeline(kind, name):
    pipe = MomentLocalizationPipeline(make_localizer(kind), WORDS, fps=4)
    video = torch.zeros(8, pipe.localizer.encoder.config.clip_channels)
    for wrong in WRONG:
        if wrong is not None or name in ("top_n", "batch_size"):
            with pytest.raises(TmapdiffError) as caught:
                pipe(video, "a door", **{name: wrong})
            assert "\n" not in str(caught.value)
