import inspect
import math
import statistics
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from helpers.assertions import assert_close, assert_same, assert_zero, refuses
from helpers.contracts import draw
from helpers.text_encoders import tiny_text_encoder
from helpers.training import make_dataset, make_trainer
from torch import Tensor

from tmapdiff import (
    IoUMapBuilder,
    MomentDataset,
    MomentLocalizationPipeline,
    SimilarityLocalizer,
    temporal_iou,
)
from tmapdiff.data import MomentBatch
from tmapdiff.errors import ArgumentError, ConfigError, ShapeError
from tmapdiff.evaluation import evaluate
from tmapdiff.losses import rescale_iou
from tmapdiff.maps.contrasts import CONTRASTS
from tmapdiff.video import VideoFeatures

GRID = {"num_clips": 12, "num_anchors": 3, "num_scales": 3}
NUM_WORDS = torch.tensor([2, 1, 1])


def localizer(**fields: object) -> SimilarityLocalizer:
    return SimilarityLocalizer(**{"clip_channels": 5, **GRID, **fields})


def randomized(**fields: object) -> SimilarityLocalizer:
    model = localizer(**fields)
    with torch.no_grad():
        model.weight.copy_(0.3 * draw(*model.weight.shape, seed=4))
        model.temperature.fill_(0.7)
    return model


def inputs(rows: int = 12) -> dict[str, Tensor]:
    words = draw(3, 2, 5, seed=1)
    return {"features": draw(3, rows, 5), "words": words, "num_words": NUM_WORDS}


def candidates(num_clips: int) -> list[tuple[int, int]]:
    """List the distinct moments of the grid."""
    found = set()
    for step in (1, 2, 4):
        for start in range(0, 12, step):
            for length in (step, 2 * step, 3 * step):
                if start + length <= num_clips // step * step:
                    found.add((start, start + length))
    return sorted(found)


def baseline(similarity: list[float], start: int, end: int) -> float:
    """Compute the default scores by a running sum, with 5 clips, 0.5, and 0.3."""
    last = len(similarity) - 1
    smooth = [
        statistics.fmean(similarity[min(max(row + offset, 0), last)] for offset in range(-2, 3))
        for row in range(len(similarity))
    ]
    mean, deviation = statistics.fmean(smooth), statistics.pstdev(smooth)
    above = sum((one - mean) / deviation - 0.5 for one in smooth[start:end])
    return above / (end - start) ** 0.3


def test_without_fitting_the_score_is_three_numbers_and_a_running_sum() -> None:
    model, given = localizer(), inputs()
    sentences = torch.stack([w[:n].mean(0) for w, n in zip(given["words"], NUM_WORDS, strict=True)])
    cosines = F.cosine_similarity(given["features"], sentences[:, None], dim=2)
    scores = model.score(**given).detach()
    moments, mask = model.grid.packed_moments().tolist(), model.grid.packed_mask()
    assert_zero(scores, ~mask)
    for sample in range(3):
        for cell in mask.nonzero()[:, 0].tolist():
            expected = baseline(cosines[sample].tolist(), *moments[cell])
            assert float(scores[sample, cell]) == pytest.approx(expected, abs=1e-4)


def expected_maps(model: SimilarityLocalizer, scores: Tensor, num_clips: list[int]) -> Tensor:
    """Compute `predict_maps` by its definition, from all pairs of candidates."""
    moments = [tuple(one) for one in model.grid.packed_moments().tolist()]
    maps = []
    for sample, clips in enumerate(num_clips):
        known = candidates(clips)
        places = [moments.index(one) for one in known]
        shares = (scores[sample, places].double() / 0.7).softmax(dim=0)
        pairs = torch.tensor(known).double()
        means = rescale_iou(temporal_iou(pairs[:, None], pairs)) @ shares
        values = dict(zip(known, means.tolist(), strict=True))
        maps.append([values.get(moment, 0.0) for moment in moments])
    return torch.tensor(maps)


@pytest.mark.parametrize("each", [1, 2])
def test_maps_hold_the_expectation_over_all_candidates(each: int) -> None:
    model, given = randomized(features_per_clip=each, spaces=(3, 2), words=True), inputs(12 * each)
    scores = model.score(**given).detach()
    assert_close(model.predict_maps(**given), expected_maps(model, scores, [12] * 3))
    num_clips = torch.tensor([12, 7, 2])
    scores = model.score(**given, num_clips=num_clips).detach()
    found = model.predict_maps(**given, num_clips=num_clips)
    # Cells of a coarse scale may end after a short video; another scale may have their moment.
    expected = expected_maps(model, scores, [12, 7, 2])
    mask = model.grid.packed_mask(num_clips=num_clips)
    assert_close(found, expected * mask)


def test_short_videos_are_answered_as_if_they_were_alone() -> None:
    model, given = randomized(), inputs(16)
    num_clips = torch.tensor([16, 9, 12])
    found = model.localize(**given, clip_seconds=torch.ones(3), num_clips=num_clips)
    for sample, clips in enumerate(num_clips.tolist()):
        rows = -(-clips // 4) * 4
        alone = {name: one[sample : sample + 1] for name, one in given.items()}
        alone["features"] = alone["features"][:, :rows]
        alone["num_clips"] = num_clips[sample : sample + 1]
        other = model.localize(**alone, clip_seconds=torch.ones(1))
        assert_close(found.ranked.moments[sample], other.ranked.moments[0])
        assert_close(found.ranked.scores[sample], other.ranked.scores[0])
    poisoned = {**given, "features": given["features"].clone()}
    poisoned["features"][1, 9:] = torch.nan
    assert_same(model.predict_maps(**poisoned, num_clips=num_clips), found.maps)


@pytest.mark.parametrize("ranking", ["nms", "expected-hits"])
def test_finds_where_the_sentence_is_shown(ranking: str) -> None:
    model = localizer(clip_channels=4, num_anchors=12, num_scales=1)
    shown = [0, 0, 0, 0, 1, 1, 1, 1, 1, 2, 2, 3]
    clips = torch.eye(4)[shown].expand(2, -1, -1)
    sentences = torch.eye(4)[[1, 2]][:, None]
    found = model.localize(
        clips, sentences, torch.ones(2).long(), torch.full((2,), 2.0), ranking=ranking
    )
    truth = torch.tensor([[8.0, 18.0], [18.0, 22.0]])
    assert bool((temporal_iou(found.ranked.moments[:, 0], truth) >= 0.5).all())
    assert bool(((found.confidence > 0) & (found.confidence <= 1)).all())


def training_batch() -> MomentBatch:
    return MomentBatch(
        **inputs(),
        moments=torch.tensor(
            [[[2.0, 9.0], [0.0, 0.0]], [[4.0, 7.0], [0.0, 1.0]], [[0.0, 1.0]] * 2]
        ),
        num_moments=torch.tensor([1, 2, 0]),
        clip_seconds=torch.ones(3),
        num_clips=torch.tensor([12, 8, 11]),
        durations=torch.tensor([12.0, 8.0, 11.0]),
        qids=[0, 1, 2],
        video_ids=["a", "b", "c"],
        queries=["one", "two", "three"],
    )


def loss_of(model: SimilarityLocalizer, batch: MomentBatch) -> Tensor:
    names = inspect.signature(model.loss).parameters
    return model.loss(**{k: v for k, v in vars(batch).items() if k in names})


def test_the_loss_is_the_cross_entropy_to_a_power_of_the_iou() -> None:
    model, batch = randomized(target_power=3.0), training_batch()
    scores = model.score(batch.features, batch.words, batch.num_words, batch.num_clips).detach()
    moments = [tuple(one) for one in model.grid.packed_moments().tolist()]
    truths = [[(2, 9)], [(4, 7), (0, 1)], []]
    total = 0.0
    for sample, clips in enumerate(batch.num_clips.tolist()):
        known = candidates(clips)
        logits = [float(scores[sample, moments.index(one)]) / 0.7 for one in known]
        log_sum = math.log(sum(math.exp(one) for one in logits))
        wanted = [
            max(
                [float(temporal_iou(torch.tensor(one), torch.tensor(t))) for t in truths[sample]],
                default=0.0,
            )
            ** 3
            for one in known
        ]
        for logit, want in zip(logits, wanted, strict=True):
            total += want / (sum(wanted) or 1) * (log_sum - logit)
    loss = loss_of(model, batch)
    assert loss.item() == pytest.approx(total / 3, rel=1e-5)
    # So, several processes weight their shares by queries.
    assert int(model.count_cells(batch.features, batch.num_clips)) == 3
    loss.backward()
    assert bool(model.weight.grad.isfinite().all())
    assert bool((model.weight.grad != 0).any())


def test_fitting_ends_at_the_minimum_of_loss_and_decay() -> None:
    model, batch, other = localizer(), queries_of(training_batch(), 0, 1), localizer()
    before = loss_of(model, batch).item()
    after = model.fit([batch], weight_decay=0.01)
    assert after < before
    # Queries without a moment have no effect.
    assert other.fit([training_batch()] + [queries_of(training_batch(), 2)] * 9, weight_decay=0.01)
    assert_close(other.weight, model.weight)
    assert_same(other.temperature, model.temperature)
    temperature = float(model.temperature)
    model.temperature.fill_(1.0)
    own = loss_of(model, batch)
    own.backward()
    # The contrasts of all candidates, by loops.
    given = (batch.features, batch.words, batch.num_words, batch.num_clips)
    contrasts = model.encoder.packed(*given)
    moments = [tuple(one) for one in model.grid.packed_moments().tolist()]
    rows = [
        contrasts[sample, :, moments.index(one)]
        for sample, clips in enumerate(batch.num_clips.tolist())
        for one in candidates(clips)
    ]
    size = torch.stack(rows).double().std(0, correction=0)
    of_decay = 0.02 * model.weight.detach().double() * size**2
    residue = (model.weight.grad.double() + of_decay) / size.where(size > 1e-6, 1)
    assert float(residue.abs().max()) < 1e-3
    decay = 0.01 * float((model.weight.detach().double() * size).square().sum())
    assert after == pytest.approx(own.item() + decay, rel=1e-3)
    assert 0.2 < temperature < 3


@pytest.mark.parametrize("size", [1e-3, 30.0, 1e4])
def test_fitting_ends_there_from_wherever_it_starts(size: float) -> None:
    batch, fresh, other = training_batch(), localizer(), randomized(presence_weights=[1.0] * 4)
    expected = fresh.fit([batch])
    other.weight.data *= size
    assert other.fit([batch]) == pytest.approx(expected, rel=1e-6)
    assert_close(other.weight, fresh.weight)
    assert other.config.presence_weights is None  # they were fitted on other maps


def queries_of(batch: MomentBatch, *rows: int) -> MomentBatch:
    picked = {
        name: value[list(rows)] if isinstance(value, Tensor) else [value[row] for row in rows]
        for name, value in vars(batch).items()
        if isinstance(value, Tensor | list)
    }
    return replace(batch, **picked)


@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
def test_fitting_is_the_same_in_batches_of_any_size(weight_decay: float) -> None:
    batch, model, other = training_batch(), localizer(), localizer()
    loss = model.fit([batch], weight_decay=weight_decay)
    parts = [queries_of(batch, 1), queries_of(batch), queries_of(batch, 2, 0)]
    assert other.fit(parts, weight_decay=weight_decay) == pytest.approx(loss, rel=1e-5)
    given = (batch.features, batch.words, batch.num_words, batch.num_clips)
    maps, expected = other.predict_maps(*given), model.predict_maps(*given)
    assert float((maps - expected).abs().max()) < 1e-4
    assert model.predict_maps(*given).isfinite().all()


def test_fitting_on_what_tells_nothing_is_refused_and_changes_nothing() -> None:
    model, batch = randomized(), training_batch()
    before = {name: one.clone() for name, one in model.state_dict().items()}
    who, features = "SimilarityLocalizer.fit: expected", batch.features.clone()
    features[0, 3, 2] = torch.inf
    for part, text in (
        (queries_of(batch, 2), "at least one query with a moment that a candidate overlaps, got"),
        (queries_of(batch), "at least one query with a moment that a candidate overlaps, got"),
        (replace(batch, features=features), "finite features, got NaN or infinity."),
    ):
        with refuses(ArgumentError, f"{who} {text}"):
            model.fit([part])
    for name, one in model.state_dict().items():
        assert_same(one, before[name], name)


def test_clips_and_words_may_be_of_two_precisions() -> None:
    model, given = randomized(), inputs()
    expected = model.score(**given)
    for name in ("features", "words"):
        found = model.score(**{**given, name: given[name].double()})
        assert_close(found.float(), expected)


def test_fitting_finds_the_temperature_of_the_smallest_error() -> None:
    model, batch = localizer(), training_batch()
    model.fit([batch], weight_decay=0.1)
    grid = model.grid_of(batch.features, batch.num_clips)
    iou = IoUMapBuilder(grid).packed(batch.moments, batch.clip_seconds, batch.num_moments)
    target, mask = model.objective.target(iou), grid.packed_mask(num_clips=batch.num_clips)
    given = (batch.features, batch.words, batch.num_words, batch.num_clips)

    def error(temperature: float) -> float:
        other = localizer()
        other.load_state_dict(model.state_dict())
        other.temperature.fill_(temperature)
        squares = (other.predict_maps(*given) - target).square()
        return float(squares[mask].sum())

    best = float(model.temperature)
    assert error(best) <= min(error(best * 2), error(best / 2)) * 1.2


def test_is_saved_and_loaded(tmp_path: Path) -> None:
    model, given = randomized(words=True, smoothings=(1, 3, 7), ranking="expected-hits"), inputs()
    model.save_pretrained(tmp_path)
    loaded = SimilarityLocalizer.from_pretrained(tmp_path)
    assert_same(loaded.predict_maps(**given), model.predict_maps(**given))
    assert_same(loaded.temperature, model.temperature)
    for name, value in model.config.items():
        assert name.startswith("_") or loaded.config[name] == value


def test_a_pipeline_of_it_answers_and_is_saved(tmp_path: Path) -> None:
    text_encoder = tiny_text_encoder(["a", "door", "person"], channels=16)
    model = localizer(clip_channels=16)
    pipe = MomentLocalizationPipeline(model, text_encoder=text_encoder, fps=4.0)
    video = VideoFeatures(draw(40, 16), 0.25, 10.0)
    found = pipe(video, ["a door", "a person"])
    pipe.save_pretrained(tmp_path)
    again = MomentLocalizationPipeline.from_pretrained(tmp_path)(video, ["a door", "a person"])
    assert found.moments == again.moments
    assert len(found.moments[0]) == 5
    assert type(again) is type(found)


def test_contrasts_of_the_default_score_are_known() -> None:
    model = localizer(spaces=(3, 2), words=True)
    names = [name for name in CONTRASTS for _ in range(6)]
    used = model.weight.detach().nonzero()[:, 0].tolist()
    assert [names[one] for one in used] == ["middle above 0.5"] * 2
    assert_close(model.weight.detach()[used], torch.full((2,), 0.5))


def test_what_does_not_fit_is_refused() -> None:
    model, given = localizer(), inputs()
    for changes, kind, text in (
        ({"features": draw(3, 12, 4)}, ShapeError, "features of shape (B, T, 5) with B = 3"),
        ({"features": draw(2, 12, 5)}, ShapeError, "features of shape (B, T, 5) with B = 3"),
        ({"features": draw(3, 11, 5)}, ShapeError, "12 clips of 1 features, got 11 features."),
        ({"words": draw(3, 2, 4)}, ShapeError, "words of shape (B, L, 5), got (3, 2, 4)."),
        ({"num_words": torch.tensor([0, 1, 1])}, ArgumentError, "num_words in 1 to 2, got 0"),
        ({"num_clips": torch.tensor([13, 1, 1])}, ArgumentError, "num_clips[0] in 1 to 12"),
    ):
        with refuses(kind, text):
            model.predict_maps(**{**given, **changes})
    with refuses(ArgumentError, "weight_decay in [0, inf), got -1."):
        model.fit([training_batch()], weight_decay=-1)
    for fields, error, text in (
        ({"spaces": (2, 2)}, ConfigError, "spaces that add up to 5 channels, got [2, 2]: 4."),
        ({"smoothings": (1, 4, 9)}, ConfigError, "odd smoothings, got 4."),
        ({"target_power": 0}, ArgumentError, "target_power in (0, inf), got 0."),
        ({"words": "no"}, ArgumentError, "words to be True or False, got 'no'."),
        ({"ranking": "best"}, ConfigError, "ranking to be one of nms, expected-hits"),
    ):
        with refuses(error, text):
            localizer(**fields)


@pytest.mark.train
def test_a_trainer_trains_it(tmp_path: Path) -> None:
    of_words = make_dataset()
    features = {item.query: draw(2, 16, seed=len(item.query)) for item in of_words.annotations}
    dataset = MomentDataset(of_words.annotations, of_words.store, None, 8, word_features=features)
    model = localizer(clip_channels=16, num_clips=8, num_anchors=8, num_scales=1)
    before = model.weight.detach().clone()
    trainer = make_trainer(dataset, tmp_path, model=model)
    trainer.train()
    assert bool((trainer.raw_model.weight != before).any())
    assert len(evaluate(trainer.ema_model, dataset).predictions) == len(dataset)
