"""The protocol of QVHighlights, against loops and the official evaluation of a submission."""

import json
from dataclasses import replace
from fractions import Fraction
from functools import partial

import numpy as np
import pytest
from helpers.assertions import refuses
from helpers.training import make_dataset, make_model
from torch.utils.data import Subset

from tmapdiff import MapGrid, MomentDataset
from tmapdiff.data import (
    Annotation,
    AnnotationSet,
    Prediction,
    load_moment_jsonl,
    read_submission,
    write_submission,
)
from tmapdiff.errors import AnnotationError, ArgumentError, ConfigError
from tmapdiff.evaluation import (
    evaluate,
    evaluate_oracle,
    evaluate_predictions,
    evaluate_prior,
    fit_moment_prior,
)

RNG = np.random.default_rng(0)
judge = partial(evaluate_predictions, protocol="qvhighlights")


def moments(count: int, duration: int) -> tuple[tuple[float, float], ...]:
    """Draw moments of whole clips, with many duplicates."""
    ends = [sorted(RNG.choice(duration // 2 + 1, 2, replace=False) * 2.0) for _ in range(count)]
    return tuple((float(start), float(end)) for start, end in ends)


def draw_set(queries: int) -> tuple[list[Prediction], AnnotationSet]:
    predictions, annotations = [], []
    for qid in range(queries):
        duration = int(RNG.integers(6, 76)) * 2
        found = moments(int(RNG.integers(1, 13)), duration)
        scores = RNG.integers(0, 4, len(found)) / 4  # with ties
        windows = tuple((*one, float(score)) for one, score in zip(found, scores, strict=True))
        saliency = tuple(float(one) for one in RNG.integers(-3, 3, RNG.integers(0, 80)))
        predictions.append(Prediction(qid, "a query", "v", windows, saliency))
        truths = tuple(dict.fromkeys(moments(int(RNG.integers(1, 5)), duration)))
        rated = RNG.integers(0, 5, (duration // 2, RNG.integers(1, 4)))
        ratings = tuple(tuple(map(float, row)) for row in rated)
        annotations.append(Annotation(qid, "v", "a query", float(duration), truths, ratings))
    return predictions, AnnotationSet(annotations)


def iou(first: tuple[float, ...], second: tuple[float, ...]) -> Fraction:
    shared = max(min(first[1], second[1]) - max(first[0], second[0]), 0)
    return Fraction(shared) / Fraction(first[1] - first[0] + second[1] - second[0] - shared)


def precision_of(found: list[bool], positives: int) -> Fraction:
    """Compute the area under the curve of precision, raised to the best after it, over recall."""
    precisions = [Fraction(sum(found[: n + 1]), n + 1) for n in range(len(found))]
    hits = (max(precisions[n:]) for n, is_hit in enumerate(found) if is_hit)
    return sum(hits, Fraction(0)) / positives


def moment_precision(windows, truths, threshold: Fraction) -> Fraction:
    free, found = list(truths), []
    for window in sorted(windows[:10], key=lambda one: -one[2]):
        fits = [one for one in free if iou(window, one) >= threshold]
        best = max(fits, key=lambda one: (iou(window, one), truths.index(one)), default=None)
        found.append(best is not None)
        if best is not None:
            free.remove(best)
    return precision_of(found, len(truths))


def clip_precision(scores, positive) -> Fraction:
    if len(set(positive)) == 1:
        return Fraction(int(positive[0]))
    points = []  # (found, precision) of all clips above each score
    for score in sorted(set(scores), reverse=True):
        chosen = [is_it for one, is_it in zip(scores, positive, strict=True) if one >= score]
        points.append((sum(chosen), Fraction(sum(chosen), len(chosen))))
    steps = [n for n, (found, _) in enumerate(points) if found > (points[n - 1][0] if n else 0)]
    return sum(max(one for _, one in points[n:]) for n in steps) / Fraction(len(steps))


def test_equals_loops():
    predictions, annotations = draw_set(60)
    found = judge(reversed(predictions), annotations)
    pairs = list(zip(predictions, annotations, strict=True))
    lengths = {"full": (0, 1000), "short": (0, 10), "middle": (10, 30), "long": (30, 150)}
    expected = {}
    for name, (above, most) in lengths.items():
        kept = [
            (one.windows, [(a, b) for a, b in item.moments if above < b - a <= most])
            for one, item in pairs
        ]
        kept = [(windows, truths) for windows, truths in kept if truths]
        means = []
        for percent in range(50, 100, 5):
            m = Fraction(percent, 100)
            hits = [max(iou(windows[0], one) for one in truths) >= m for windows, truths in kept]
            precisions = [moment_precision(*pair, m) for pair in kept]
            means.append(sum(precisions) / len(kept))
            expected[f"MR-{name}-R1@{float(m):g}"] = Fraction(sum(hits), len(kept))
            expected[f"MR-{name}-mAP@{float(m):g}"] = means[-1]
        expected[f"MR-{name}-mAP"] = sum(means) / len(means)
    for name, least in (("Fair", 2), ("Good", 3), ("VeryGood", 4)):
        hits, precisions = [], []
        for one, item in pairs:
            clips = len(item.saliency)
            best = one.saliency.index(max(one.saliency)) if one.saliency else clips
            hits.append(best < clips and max(item.saliency[best]) >= least)
            scores = [*one.saliency, *[0.0] * clips][:clips]
            of_each = zip(*item.saliency, strict=True)
            each = [clip_precision(scores, [n >= least for n in row]) for row in of_each]
            precisions.append(sum(each) / len(each))
        expected[f"HL-min-{name}-mAP"] = sum(precisions) / len(precisions)
        expected[f"HL-min-{name}-Hit1"] = Fraction(sum(hits), len(hits))
    assert found == pytest.approx({key: 100 * float(one) for key, one in expected.items()})


def test_of_moments_that_fit_equally_the_last_is_found():
    item = Annotation(0, "v", "a query", 20.0, ((0.0, 8.0), (4.0, 12.0)))
    prediction = Prediction(0, "a query", "v", ((0.0, 12.0, 0.9), (0.0, 8.0, 0.8)))
    found = judge([prediction], AnnotationSet([item]))
    assert found["MR-full-mAP@0.5"] == 100


def test_equals_what_the_official_evaluation_printed(data_root):
    captions_root = data_root / "qvhighlights_captions"
    predictions = read_submission(captions_root / "peer_predictions" / "sample_val_preds.jsonl")
    annotations = load_moment_jsonl(captions_root / "highlight_val_release.jsonl")
    found = judge(predictions, annotations)
    path = captions_root / "peer_predictions" / "sample_val_preds_metrics_raw.json"
    printed = json.loads(path.read_text())
    expected = printed.pop("brief")
    for name, metrics in printed.items():
        if name.startswith("HL"):
            continue  # they are all in `brief`
        for kind in ("R1", "mAP"):
            for threshold, value in metrics[f"MR-{kind}"].items():
                at = "" if threshold == "average" else f"@{threshold}"
                expected[f"MR-{name}-{kind}{at}"] = value
    assert {name: float(f"{value:.2f}") for name, value in found.items()} == expected
    assert len(expected) == 4 * 21 + 6


def test_without_saliency_there_are_no_highlights_and_with_some_of_it_no_answer():
    predictions, annotations = draw_set(3)
    bare = [replace(one, saliency=None) for one in predictions]
    found = judge(bare, annotations)
    assert found
    assert not any(name.startswith("HL") for name in found)
    # A video shorter than a clip has no scores.
    short = replace(predictions[0], saliency=())
    assert "HL-min-Fair-mAP" in judge([short, *predictions[1:]], annotations)
    with refuses(ArgumentError, "saliency in all predictions or in none, got 1 of 3 without"):
        judge([*predictions[:2], bare[2]], annotations)


def test_highlights_are_of_the_queries_that_were_rated():
    predictions, annotations = draw_set(6)
    some = AnnotationSet([*annotations[:4], *(replace(a, saliency=None) for a in annotations[4:])])
    found = judge(predictions, some)
    rated = judge(predictions[:4], annotations[:4])
    assert {name: rated[name] for name in rated if name.startswith("HL")} == {
        name: found[name] for name in found if name.startswith("HL")
    }
    none = AnnotationSet([replace(item, saliency=None) for item in annotations])
    found = judge(predictions, none)
    assert not any(name.startswith("HL") for name in found)


def test_lengths_that_no_moment_has_are_left_out_and_the_longest_have_none():
    for moment, lengths in (
        ((0.0, 10.0), {"full", "short"}),
        ((0.0, 30.0), {"full", "middle"}),
        ((50.0, 200.0), {"full", "long"}),
        ((0.0, 150.1), {"full"}),  # as in the official evaluation, which has no longer class
    ):
        annotations = AnnotationSet([Annotation(0, "v", "a query", 200.0, (moment,))])
        prediction = Prediction(0, "a query", "v", ((*moment, 1.0),))
        found = judge([prediction], annotations)
        assert {name.split("-")[1] for name in found} == lengths
        assert set(found.values()) == {100}
        found = evaluate_predictions(
            [replace(prediction, windows=())], annotations, protocol="qvhighlights"
        )
        assert set(found.values()) == {0}


@pytest.fixture(scope="module")
def dataset() -> MomentDataset:
    """Queries with one to three moments, which do not end at clip boundaries."""
    made = make_dataset(4, "test")
    more = [(0.3, 4.1), (6.3, 14.9)]
    items = [
        replace(item, moments=(*item.moments, *more[: place % 3]))
        for place, item in enumerate(made.annotations)
    ]
    return MomentDataset(AnnotationSet(items), made.store, made.vocabulary, 8)


@pytest.mark.parametrize("ranking", ["nms", "expected-hits"])
def test_a_model_is_judged_as_its_submission(dataset, ranking, tmp_path):
    model = make_model(dataset, dropout=0.0)
    options = {"num_inference_steps": 1, "ranking": ranking, "batch_size": 5}
    found = evaluate(model, dataset, protocol="qvhighlights", **options)
    assert 5 < max(len(one.windows) for one in found.predictions) <= 10
    write_submission(found.predictions, tmp_path / "predictions.jsonl")
    for predictions in (found.predictions, read_submission(tmp_path / "predictions.jsonl")):
        official = judge(predictions, dataset.annotations)
        expected = evaluate_predictions(predictions, dataset.annotations) | official
        assert found.metrics == pytest.approx(expected, abs=1e-3)
    assert list(found.metrics) == list(expected)
    assert 0 < official["MR-full-mAP"] < 100
    # The other protocol evaluates the first five.
    assert evaluate(model, dataset, **options).metrics.items() <= found.metrics.items()


def test_controls_are_judged_by_the_protocol(dataset):
    grid = MapGrid(num_clips=8, num_anchors=8, num_scales=1)
    cells = AnnotationSet(
        [replace(one, moments=((0.0, one.duration),)) for one in dataset.annotations]
    )
    whole = MomentDataset(cells, dataset.store, dataset.vocabulary, 8)
    prior = fit_moment_prior(grid, whole, threshold=0.9)
    for found in (
        evaluate_oracle(grid, whole, protocol="qvhighlights"),
        evaluate_prior(grid, prior, whole, protocol="qvhighlights"),
    ):
        assert list(found.values()) == pytest.approx([100] * len(found))
        assert {"Rank1@0.5", "MR-full-mAP"} < found.keys()
    best = evaluate_oracle(grid, dataset, protocol="qvhighlights")
    constant = evaluate_prior(
        grid, fit_moment_prior(grid, dataset), dataset, protocol="qvhighlights"
    )
    assert 0 < constant["MR-full-mAP"] < best["MR-full-mAP"] <= 100
    with refuses(ConfigError, "protocol"):
        evaluate_oracle(grid, dataset, protocol="didemo")


def test_what_the_protocol_needs_of_evaluate(dataset):
    model = make_model(dataset)
    with refuses(ArgumentError, "expected top_n to be an integer >= 10, got 5. Protocol 'qv"):
        evaluate(model, dataset, top_n=5, protocol="qvhighlights")
    with refuses(ArgumentError, "expected a MomentDataset, whose annotations protocol"):
        evaluate(model, Subset(dataset, [0]), protocol="qvhighlights")
    with refuses(ConfigError, "evaluate: expected protocol to be one of rank, didemo, qvhighl"):
        evaluate(model, dataset, protocol="map")


def test_other_protocols_and_their_options_are_refused():
    predictions, annotations = draw_set(1)
    with refuses(ConfigError, "protocol"):
        evaluate_predictions(predictions, annotations, protocol="ranks")
    with refuses(ArgumentError, "no ranks, thresholds or strict with protocol 'qvhighlights'"):
        judge(predictions, annotations, ranks=(1,))


def test_saliency_is_read_and_written(tmp_path):
    line = {
        "qid": 1, "query": "A girl cooks.", "vid": "v", "duration": 9, "relevant_windows": [[2, 6]],
        "relevant_clip_ids": [1, 2], "saliency_scores": [[4, 2, 0], [1, 1, 3]],
    }  # fmt: skip
    path = tmp_path / "queries.jsonl"
    path.write_text(json.dumps(line))
    (item,) = load_moment_jsonl(path)
    assert item.saliency == ((0, 0, 0), (4, 2, 0), (1, 1, 3), (0, 0, 0))
    for field, value in (
        ("relevant_clip_ids", [1]),
        ("relevant_clip_ids", [1, 4]),
        ("relevant_clip_ids", [1, True]),
        ("saliency_scores", [[4, 2, 0], [1, 1]]),
        ("saliency_scores", [4, 2]),
        ("saliency_scores", [[4, 2, 0], [1, 1, "3"]]),
    ):
        path.write_text(json.dumps({**line, field: value}))
        with refuses(AnnotationError, "line 1"):
            load_moment_jsonl(path)
    predictions = (Prediction(1, "A girl cooks.", "v", ((2.0, 6.0, 1.0),), (0.5, -1.0)),)
    write_submission(predictions, path)
    assert read_submission(path) == predictions
    assert json.loads(path.read_text())["pred_saliency_scores"] == [0.5, -1.0]
    with refuses(AnnotationError, "saliency"):
        replace(predictions[0], saliency=(float("nan"),))
