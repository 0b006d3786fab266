"""Answers are those of evaluation mode, leave the mode as it is, and are finite."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from helpers.assertions import assert_same, refuses
from helpers.contracts import draw, randomize_
from helpers.fields import ENCODER as SMALLEST
from helpers.fields import GRID
from helpers.threads import at_once
from torch import Tensor, nn
from torch.utils.data import Dataset

from tmapdiff import (
    MS2DTAN,
    MomentDataset,
    MomentLocalizationPipeline,
    MomentLocalizer,
    RankedMoments,
    Vocabulary,
)
from tmapdiff.data import Annotation, AnnotationSet
from tmapdiff.errors import ArgumentError, ConfigError
from tmapdiff.evaluation import draw_queries, evaluate
from tmapdiff.maps import MultiScaleMapSampler, read_moment_sets
from tmapdiff.models import MapLocalizer
from tmapdiff.video import VideoFeatures

WORDS = ["a", "person", "opens", "the", "door"]
DROPOUT = {"dropout": 0.5, "word_dropout": 0.5}
ENCODER = {**SMALLEST, "vocabulary_size": len(WORDS) + 2, **DROPOUT}
DECODER = {**GRID, "feature_channels": 8, "channels": 8, "time_channels": 8, "dropout": 0.5}
TRANSFORMER = {"architecture": "transformer", "num_heads": 2, "num_layers": 1, "norm": "layer"}
MODELS: dict[str, Callable[[], MapLocalizer]] = {
    "conv": lambda: MomentLocalizer(ENCODER, {**DECODER, "kernel_sizes": [3]}),
    "transformer": lambda: MomentLocalizer(ENCODER, {**DECODER, **TRANSFORMER}),
    "deterministic": lambda: MomentLocalizer(
        ENCODER, {**DECODER, "kernel_sizes": [3]}, deterministic=True
    ),
    "MS-2D-TAN": lambda: MS2DTAN(ENCODER, kernel_sizes=[3]),
}


def make(name: str) -> MapLocalizer:
    return randomize_(MODELS[name]()).eval()


def seeds(model: MapLocalizer) -> dict[str, Any]:
    if not model.is_generative:
        return {}
    return {"generator": [torch.Generator().manual_seed(seed) for seed in range(3)]}


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    return draw(3, 8, 6), torch.arange(2, 17).view(3, 5) % 5 + 1, torch.tensor([5, 3, 1])


def map_features() -> list[Tensor]:
    return [draw(3, 8, 8, 4), draw(3, 8, 4, 4)]


class _Store(dict[str, Tensor]):
    description, seconds_per_feature, feature_dim = "random", None, 6


def dataset() -> Dataset[Any]:
    annotations = AnnotationSet(
        Annotation(index, name, "a person opens the door", 8.0, ((1.0, 5.0),))
        for index, name in enumerate("abc")
    )
    store: Any = _Store({name: draw(8, 6, seed=seed) for seed, name in enumerate("abc")})
    return MomentDataset(annotations, store, Vocabulary(WORDS), num_clips=GRID["num_clips"])


def pipe(model: MapLocalizer) -> Tensor:
    pipeline = MomentLocalizationPipeline(model, Vocabulary(WORDS))
    videos = [VideoFeatures(draw(8, 6, seed=seed), 1.0, 8.0) for seed in range(3)]
    found = pipeline(videos, "a person opens the door", batch_size=2, **seeds(model))
    return torch.stack(list(found.maps)).nan_to_num()


def sets(model: MapLocalizer, **options: Any) -> RankedMoments:
    return model.localize(*inputs(), torch.ones(3), answer="set", **seeds(model), **options).ranked


ANSWERS: dict[str, Callable[[MapLocalizer], Tensor]] = {
    "predict_maps": lambda model: model.predict_maps(*inputs(), **seeds(model)),
    "localize": lambda model: model.localize(*inputs(), torch.ones(3), **seeds(model)).maps,
    "set": lambda model: sets(model).presence,
    "sample_maps": lambda model: model.sample_maps(map_features(), **seeds(model)),
    "draw_samples": lambda model: model.draw_samples(map_features(), 2, **seeds(model)),
    "pipeline": pipe,
    "evaluate": lambda model: evaluate(model, dataset(), batch_size=2).confidence,
}
CASES = [
    (name, answer)
    for name in MODELS
    for answer in ANSWERS
    if name != "MS-2D-TAN" or answer not in ("sample_maps", "draw_samples")
    if name != "deterministic" or answer != "draw_samples"
]


def modes(model: nn.Module) -> list[bool]:
    return [one.training for one in model.modules()]


def mixed(model: MapLocalizer) -> None:
    """Freeze a part and its statistics, as when training only the rest."""
    model.train()
    model.encoder.map_features.eval()


def only_a_part(model: MapLocalizer) -> None:
    model.encoder.train()


@pytest.mark.parametrize(("name", "answer"), CASES)
def test_a_model_in_training_answers_as_in_evaluation_and_stays_as_it_is(name, answer):
    model = make(name)
    expected = ANSWERS[answer](model)
    kept = {key: value.clone() for key, value in model.state_dict().items()}
    for change in (MapLocalizer.train, mixed, only_a_part):
        change(model.eval())
        before = modes(model)
        assert_same(ANSWERS[answer](model), expected, change.__name__)
        assert modes(model) == before
        for key, value in model.state_dict().items():
            assert_same(value, kept[key], key)
        assert all(one.grad is None for one in model.parameters())


@pytest.mark.parametrize("name", MODELS)
def test_overlapping_answers_change_neither_each_other_nor_the_mode(name):
    model = make(name)
    expected = pipe(model)
    model.train()
    for _ in range(2):
        for found in at_once([partial(pipe, model)] * 4):
            assert_same(found, expected)
        assert all(modes(model))


def test_a_training_step_beside_answers_is_the_step_alone():
    features, words, num_words = inputs()
    moments = torch.tensor([[1.0, 5.0]]).expand(3, 2)

    def statistics(model: MapLocalizer) -> Tensor:
        for _ in range(10):
            model.loss(features, words, num_words, moments, torch.ones(3))
            assert all(modes(model))
        buffers = dict(model.named_buffers())
        return torch.stack([one for name, one in buffers.items() if name.endswith("tracked")])

    alone, beside = make("conv").train(), make("conv").train()
    expected = statistics(alone)
    found, *_ = at_once([partial(statistics, beside), *[partial(pipe, beside)] * 3])
    assert bool((found == expected).all())
    assert int(found.min()) == 10


def test_drawing_leaves_the_mode():
    model = make("conv").train()
    draw_queries(model, dataset(), [0])
    assert all(modes(model))


def test_an_answer_that_fails_leaves_the_mode():
    model = make("conv").train()
    with pytest.raises(KeyboardInterrupt):
        model.sample_maps(map_features(), callback=_interrupt)
    assert all(modes(model))


def _interrupt(step: Any) -> None:
    raise KeyboardInterrupt


def test_a_model_in_evaluation_is_its_own_view_and_keeps_its_spectra(monkeypatch):
    monkeypatch.setenv("TMAPDIFF_BACKEND", "map_conv=spectral")
    model = make("conv")
    assert model.evaluation_view() is model
    conv = model.decoder.decoders[0].convs[0].conv
    pipe(model)
    assert conv.spectra._kept is not None
    model.train()
    pipe(model)
    assert conv.spectra._kept is None  # weights may change: nothing is cached


def test_weights_that_change_are_seen():
    model = make("conv").train()
    before = pipe(model)
    with torch.no_grad():
        model.encoder.fuse_map.weight.neg_()
    assert float((pipe(model) - before).abs().max()) > 1e-3


def test_replaced_forwards_are_refused_in_training_only():
    model = make("conv")
    part = model.encoder.map_features
    part.forward = partial(part.forward)  # as offloading hooks do
    pipe(model)
    model.train()
    text = (
        "MomentLocalizer: expected evaluation mode, as the forward of a MapFeatureBuilder is "
        "replaced, got training mode. Call model.eval() first."
    )
    with refuses(ArgumentError, text):
        pipe(model)


# Scores that are not finite used to be ignored, which gave empty answers.


READING = [(name, answer) for name in MODELS for answer in ("localize", "pipeline", "evaluate")]


def spoil_weight(model: MapLocalizer, value: float) -> str:
    with torch.no_grad():
        model.encoder.fuse_map.weight[0, 0] = value
    return "encoder.fuse_map.weight"


def spoil_statistics(model: MapLocalizer, value: float) -> str:
    name, norm = next(
        (name, one) for name, one in model.named_modules() if isinstance(one, nn.BatchNorm1d)
    )
    norm.running_mean[0] = value
    return f"{name}.running_mean"


@pytest.mark.parametrize(
    ("spoil", "value"),
    [
        (spoil_weight, torch.nan),
        (spoil_weight, torch.inf),
        (spoil_weight, -torch.inf),
        (spoil_statistics, torch.nan),  # tanh makes infinity finite
    ],
)
@pytest.mark.parametrize(("name", "answer"), READING)
def test_a_damaged_model_is_an_error_that_names_the_weights(name, answer, spoil, value):
    model = make(name)
    where = spoil(model, value)
    who = type(model).__name__
    text = f"got nan in row 0. These weights are not finite: {where} (1 in all)."
    with refuses(ArgumentError, f"{who}: expected finite scores, {text}"):
        ANSWERS[answer](model)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("name", MODELS)
def test_features_that_are_not_finite_are_an_error(name, value):
    model, (features, words, num_words) = make(name), inputs()
    features[1, 2, 3] = value
    text = "expected finite scores, got nan in row 1. All weights are finite: check the features"
    with refuses(ArgumentError, text):
        model.localize(features, words, num_words, torch.ones(3), **seeds(model))


@pytest.mark.parametrize("ranking", ["nms", "expected-hits"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_maps_are_read_in_valid_cells_only(ranking, value):
    model, seconds = make("MS-2D-TAN"), torch.ones(2)
    num_clips, maps = torch.tensor([8, 6]), torch.rand(2, model.grid.num_cells)
    valid = model.grid.packed_mask(num_clips=num_clips)
    options: dict[str, Any] = {"num_clips": num_clips, "ranking": ranking}
    found = model.read_moments(maps.masked_fill(~valid, value), seconds, **options).ranked
    assert_same(found.moments, model.read_moments(maps, seconds, **options).ranked.moments)
    maps[1, int(valid[1].nonzero()[-1])] = value
    with refuses(ArgumentError, f"expected finite scores, got {value:g} in row 1."):
        model.read_moments(maps, seconds, **options)


@pytest.mark.parametrize("answer", ["ranked", "set"])
def test_cells_outside_all_windows_are_no_answers(answer):
    model = make("MS-2D-TAN")
    maps, held = torch.rand(2, 3, model.grid.num_cells), torch.rand(2, model.grid.num_cells) < 0.5
    options: dict[str, Any] = {"held": held, "answer": answer}
    found = model.read_moments(maps, torch.ones(2), **options).ranked
    other = model.read_moments(maps.masked_fill(~held[:, None], 9), torch.ones(2), **options).ranked
    assert_same(found.moments, other.moments)


# Batches with videos of other lengths, and with videos without the event.


def loss(model: MapLocalizer, **changes: Any) -> Tensor:
    features, words, num_words = inputs()
    given = {
        "features": features,
        "words": words,
        "num_words": num_words,
        "moments": torch.tensor([[1.0, 5.0]]).expand(3, 2),
        "clip_seconds": torch.ones(3),
        "generator": torch.Generator().manual_seed(0),
    }
    return model.loss(**{**given, **changes}).detach()


TAKES_CLIPS: dict[str, Callable[[MapLocalizer, Tensor], Any]] = {
    "loss": lambda model, clips: loss(model, num_clips=clips),
    "check_values": lambda model, clips: model.check_values(
        inputs()[0], inputs()[1], torch.ones(3, 0, 2), torch.ones(3), num_clips=clips
    ),
    "predict_maps": lambda model, clips: model.predict_maps(*inputs(), clips, **seeds(model)),
    "localize": lambda model, clips: model.localize(
        *inputs(), torch.ones(3), num_clips=clips, **seeds(model)
    ),
    "read_moments": lambda model, clips: model.read_moments(
        torch.zeros(3, model.grid.num_cells), torch.ones(3), num_clips=clips
    ),
}


@pytest.mark.parametrize("use", TAKES_CLIPS)
@pytest.mark.parametrize("name", MODELS)
def test_videos_of_no_clip_or_more_than_there_are_features_of_are_refused(name, use):
    model = make(name)
    TAKES_CLIPS[use](model, torch.tensor([8, 3, 1]))
    for wrong in (0, -1, 9, 40):
        with refuses(ArgumentError, f"MapGrid: expected num_clips[1] in 1 to 8, got {wrong}."):
            TAKES_CLIPS[use](model, torch.tensor([8, wrong, 1]))


@pytest.mark.parametrize("name", MODELS)
def test_samples_without_any_event_are_learned_as_empty_maps(name):
    model = make(name)
    moments = torch.tensor([[1.0, 5.0]]).expand(3, 2)[:, None]
    counted = loss(model, moments=moments, num_moments=torch.tensor([1, 0, 1]))
    # Its map is empty, like that of a moment that no candidate overlaps.
    build = model.build_iou_maps
    targets = build.packed(moments, torch.ones(3))
    targets[1] = 0
    model.build_iou_maps = _Given(targets)
    assert_same(counted, loss(model, moments=moments))
    model.build_iou_maps = build
    nothing = loss(model, moments=moments, num_moments=torch.zeros(3, dtype=torch.int64))
    assert_same(loss(model, moments=torch.zeros(3, 0, 2)), nothing)
    no_counts = {"num_moments": torch.zeros(3, dtype=torch.int64)}
    assert_same(loss(model, moments=torch.zeros(3, 0, 2), **no_counts), nothing)
    assert bool(nothing.isfinite())
    model.check_values(*inputs()[:2], moments, torch.ones(3), torch.tensor([1, 0, 1]))


class _Given:
    """Replaces the builder of maps."""

    validate = True

    def __init__(self, targets: Tensor) -> None:
        self.targets = targets

    def packed(self, *inputs: Any) -> Tensor:
        return self.targets


@pytest.mark.parametrize("name", MODELS)
def test_a_set_is_read_off_all_samples(name: str) -> None:
    model = make(name)
    options = {"top_n": 3, "presence": torch.tensor([0.0, 0.9, 1.0])}
    sampling = {"num_samples": 3} if model.is_generative else {}
    found = sets(model, **options, **sampling)
    assert int(found.num_moments[0]) == 0
    samples = model.predict_samples(*inputs(), **seeds(model), **sampling)
    mean = model.predict_maps(*inputs(), **seeds(model), **sampling)
    assert_same(samples.mean(dim=1), mean)
    candidates, scores = MultiScaleMapSampler(model.grid).merge_packed(samples.flatten(0, 1))
    scores = scores.unflatten(0, samples.shape[:2])
    given: dict[str, Any] = {"target": model.objective.target, **options}
    expected = read_moment_sets(candidates, scores, torch.ones(3), **given)
    assert_same(found.moments, expected.moments)
    assert_same(found.scores, expected.scores)
    read = model.read_moments(samples, torch.ones(3), answer="set", **options)
    assert_same(read.ranked.moments, found.moments)
    assert read.confidence.tolist() == found.scores[:, 0].clamp(min=0).tolist()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"answer": "set", "ranking": "nms"}, "no ranking with answer 'set'"),
        ({"answer": "set", "temperature": 2.0}, "no temperature with answer 'set'"),
        ({"answer": "set", "hit_thresholds": (0.5,)}, "no hit_thresholds with answer 'set'"),
        ({"presence": torch.ones(3)}, "no presence with answer 'ranked'"),
        ({"answer": "all"}, "answer to be one of ranked, set, got 'all'."),
        ({"ranking": "vote"}, "ranking to be one of nms, expected-hits, nms-then-expected-hits, g"),
        ({"temperature": 2.0}, "no temperature with ranking 'nms', got 2.0. To use it, pass"),
        ({"hit_thresholds": (0.5,)}, "no hit_thresholds with ranking 'nms', got (0.5,)."),
        ({"ranking": "expected-hits", "nms_threshold": 0.6}, "no nms_threshold with ranking 'exp"),
    ],
)
def test_options_without_use_are_refused(options: dict[str, Any], text: str) -> None:
    with refuses((ArgumentError, ConfigError), f"MS2DTAN: expected {text}"):
        make("MS-2D-TAN").localize(*inputs(), torch.ones(3), **options)
