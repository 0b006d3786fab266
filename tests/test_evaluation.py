import json

import pytest
import torch

from tmapdiff import ActionTimelineFeatures, MapGrid, MomentDataset, Vocabulary, temporal_iou
from tmapdiff.data import SyntheticActivities
from tmapdiff.errors import ArgumentError, FileError
from tmapdiff.evaluation import (
    draw_queries,
    evaluate,
    evaluate_prior,
    fit_moment_prior,
    write_predictions,
)
from tmapdiff.models import MomentLocalizer

GRID = {"num_clips": 8, "num_anchors": 4, "num_scales": 2}


@pytest.fixture(scope="module")
def dataset() -> MomentDataset:
    data = SyntheticActivities(num_videos=4, split="test")
    store = ActionTimelineFeatures(data.videos, num_classes=data.num_classes, feature_dim=16)
    vocabulary = Vocabulary.from_sentences(item.query for item in data.annotations)
    return MomentDataset(data.annotations, store, vocabulary, num_clips=8)


@pytest.fixture(scope="module")
def model(dataset) -> MomentLocalizer:
    torch.manual_seed(0)
    model = MomentLocalizer(
        encoder_config={
            **GRID,
            "vocabulary_size": len(dataset.vocabulary),
            "clip_channels": 16,
            "channels": 8,
            "word_channels": 8,
            "num_text_layers": 1,
        },
        decoder_config={
            **GRID,
            "feature_channels": 8,
            "channels": 8,
            "time_channels": 8,
            "kernel_sizes": [3],
        },
    )
    with torch.no_grad():
        for decoder in model.decoder.decoders:
            decoder.head.bias.fill_(0.5)  # far from where scores are clipped
    return model.eval()


def test_metrics_are_those_of_the_predictions(model, dataset):
    found = evaluate(model, dataset, num_inference_steps=2)
    assert len(found.predictions) == len(dataset)
    hits, ious = 0, []
    for prediction, item in zip(found.predictions, dataset.annotations, strict=True):
        assert (prediction.qid, prediction.query) == (item.qid, item.query)
        assert prediction.video_id == item.video_id
        scores = [score for _, _, score in prediction.windows]
        assert scores == sorted(scores, reverse=True)
        assert all(0 <= s < e <= item.duration * 1.0001 for s, e, _ in prediction.windows)
        first = torch.tensor(prediction.windows[0][:2], dtype=torch.float64)
        truth = torch.tensor(item.moments[0], dtype=torch.float64)
        ious.append(float(temporal_iou(first, truth)))
        hits += ious[-1] > 0.5
    assert found.metrics["Rank1@0.5"] == pytest.approx(100 * hits / len(dataset))
    assert found.metrics["mIoU"] == pytest.approx(100 * sum(ious) / len(ious), rel=1e-4)
    assert found.queries_per_second == pytest.approx(len(dataset) / found.seconds)


def test_batch_size_does_not_matter_and_the_seed_does(model, dataset):
    by_size = [evaluate(model, dataset, batch_size=size) for size in (1, 3, 64)]
    windows = [torch.tensor([p.windows for p in found.predictions]) for found in by_size]
    torch.testing.assert_close(windows[0], windows[1])
    torch.testing.assert_close(windows[0], windows[2])
    other = evaluate(model, dataset, seed=1)
    other_windows = torch.tensor([p.windows for p in other.predictions])
    assert not torch.allclose(other_windows, windows[2])
    # Every query has noise of its own.
    scores = windows[2][:, 0, 2]
    assert len(scores.unique()) == len(scores)


def test_model_keeps_its_mode_and_progress_is_reported(model, dataset):
    seen = []
    model.train()
    evaluate(model, dataset, batch_size=5, num_inference_steps=1, on_batch=seen.append)
    assert model.training
    assert sum(seen) == len(dataset)
    model.eval()


@pytest.mark.parametrize("name", ["batch_size", "seed"])
def test_arguments_out_of_range_are_refused(model, dataset, name):
    with pytest.raises(ArgumentError, match=f"evaluate: expected {name} to be an integer >= "):
        evaluate(model, dataset, **{name: -1})


def test_predictions_file_has_the_submission_form(model, dataset, tmp_path):
    found = evaluate(model, dataset, num_inference_steps=1)
    path = tmp_path / "predictions.jsonl"
    write_predictions(found.predictions, path)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["qid"] for line in lines] == [item.qid for item in dataset.annotations]
    assert set(lines[0]) == {"qid", "query", "vid", "pred_relevant_windows"}
    assert all(len(window) == 3 for window in lines[0]["pred_relevant_windows"])


def test_predictions_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match=r"^cannot write .*predictions\.jsonl: Not a directory\.$"):
        write_predictions((), tmp_path / "file" / "predictions.jsonl")


def test_prior_is_the_share_of_moments_that_each_cell_hits(dataset):
    grid = MapGrid(**GRID)
    prior = fit_moment_prior(grid, dataset, threshold=0.5)
    cells, mask = grid.packed_moments(), grid.packed_mask()
    for cell in range(grid.num_cells):
        hits = 0
        for item in dataset.annotations:
            seconds = cells[cell].double() * (item.duration / grid.num_clips)
            hits += bool(temporal_iou(seconds, torch.tensor(item.moments[0]).double()) > 0.5)
        expected = hits / len(dataset) if mask[cell] else 0
        assert prior[cell].item() == pytest.approx(expected, abs=1e-6)


def test_prior_is_the_best_constant_answer_on_its_own_data(dataset):
    grid = MapGrid(**GRID)
    prior = fit_moment_prior(grid, dataset)
    best = evaluate_prior(grid, prior, dataset)["Rank1@0.5"]
    assert best == pytest.approx(100 * prior.max().item(), abs=1e-3)
    constant = torch.zeros_like(prior)
    constant[prior.argmin()] = 1
    assert evaluate_prior(grid, constant, dataset)["Rank1@0.5"] <= best


def test_drawing_shows_each_query_beside_its_truth(model, dataset):
    figure = draw_queries(model, dataset, [0, 2], num_inference_steps=1)
    assert len(figure.subfigs) == 2
    for part, position in zip(figure.subfigs, (0, 2), strict=True):
        assert dataset.annotations[position].query in part.get_suptitle()
        assert [ax.get_title() for ax in part.axes[:2]] == ["prediction", "truth"]


def test_drawing_nothing_is_refused(model, dataset):
    with pytest.raises(ArgumentError, match="expected the number of positions to be an integer"):
        draw_queries(model, dataset, [])
