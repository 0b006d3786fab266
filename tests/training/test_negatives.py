from collections import Counter
from dataclasses import replace

import pytest
import torch
from helpers.assertions import refuses
from helpers.training import (
    CONFIG,
    assert_equal_weights,
    make_dataset,
    make_model,
    make_trainer,
    stop_at_step,
    weights,
)
from torch.utils.data import Subset

from tmapdiff.errors import ArgumentError, CheckpointError
from tmapdiff.recipes import LocalizationData, Recipe, SamplingOptions, evaluate_trained
from tmapdiff.training.progress import Progress

WITH = replace(CONFIG, negatives=0.5)


@pytest.fixture(scope="module")
def dataset():
    return make_dataset(4)


def pairs_of(trainer, epoch: int) -> list[tuple]:
    """Return the queries of an epoch, each with its video and number of moments."""
    trainer._order.set_epoch(epoch)
    return [
        pair
        for batch in trainer.loader
        for pair in zip(batch.qids, batch.video_ids, batch.num_moments.tolist(), strict=True)
    ]


def test_pairs_are_those_of_seed_and_epoch(dataset, tmp_path):
    first, same, other = (
        make_trainer(dataset, tmp_path / str(n), replace(WITH, seed=seed))
        for n, seed in enumerate((1, 1, 2))
    )
    pairs = pairs_of(first, 0)
    assert pairs == pairs_of(same, 0) == pairs_of(first, 0)
    assert sorted(pairs) not in (sorted(pairs_of(first, 1)), sorted(pairs_of(other, 0)))
    own = {item.qid: item.video_id for item in dataset.annotations}
    counts = Counter()
    for qid, video, moments in (pair for epoch in range(10) for pair in pairs_of(first, epoch)):
        assert (own[qid] == video) == (moments > 0)
        counts[moments] += 1
    assert counts[0] / counts.total() == pytest.approx(0.5, abs=0.1)
    with refuses(ArgumentError, "Trainer: expected a MomentDataset for negatives, got Subset."):
        make_trainer(Subset(dataset, range(4)), tmp_path, WITH, make_model(dataset))


def test_a_run_that_stops_within_an_epoch_goes_on_with_the_same_pairs(dataset, tmp_path):
    config = replace(WITH, epochs=2)
    whole = make_trainer(dataset, tmp_path / "whole", config)
    whole.train()
    stop_at_step(make_trainer(dataset, tmp_path / "parts", config), len(whole.loader) + 1)
    torch.manual_seed(5)
    resumed = make_trainer(dataset, tmp_path / "parts", config).resume()
    assert resumed.progress.batch
    resumed.train()
    assert_equal_weights(weights(whole), weights(resumed))
    for share, got in ((0.0, "negatives = 0.0, got 0.5."), (0.2, "negatives = 0.2, got 0.5.")):
        with refuses(CheckpointError, got):
            make_trainer(dataset, tmp_path / "parts", replace(config, negatives=share)).resume()


def test_checkpoints_older_than_the_setting_are_of_runs_without():
    Progress({"seed": 1, "negatives": 0.0}).check({"config": {"seed": 1}})
    with refuses(CheckpointError, "negatives = 0.2, got 0.0."):
        Progress({"seed": 1, "negatives": 0.2}).check({"config": {"seed": 1}})


@pytest.mark.train
def test_a_recipe_holds_out_videos_to_fit_whether_an_answer_is_there(tmp_path):
    data, lines = LocalizationData.make_up().limit(160), []
    training = {"negatives": 0.3, "epochs": 1}
    recipe = Recipe("nano", "ms2dtan", training=training)
    trained = recipe.train(data, tmp_path, device="cpu", say=lines.append)
    assert any(line.endswith("held out of training, to fit presence") for line in lines)
    assert len(trained.train_set) < len(data.train)
    assert trained.train_set.negatives == 0
    assert trained.model.config.presence_weights
    assert not trained.raw_model.config.presence_weights
    rows = evaluate_trained(trained, SamplingOptions(), data).rows
    told = rows.pop("in this video, or in another")
    assert set(told) >= {"Presence-AUROC", "Presence-Brier"}
    assert not any(name.startswith("Presence") for row in rows.values() for name in row)
