"""Training and evaluation on several processes give what one process gives."""

import json
import shutil
from functools import partial

import pytest
import torch
from helpers.processes import run_processes
from helpers.several_processes import assert_trained_alike, evaluate_queries, train

pytestmark = pytest.mark.process


def run_training(folder, count, batch_size, **options):
    printed = run_processes(partial(train, **options), count, folder / "logs", folder, batch_size)
    return torch.load(folder / "found.pt", weights_only=False), printed


def run_evaluation(folder, count, queries):
    run_processes(evaluate_queries, count, folder / "logs", folder, queries)
    paths = [folder / f"process-{process}.json" for process in range(count)]
    return [json.loads(path.read_text()) for path in paths]


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Results of two processes on 21 queries, and their folder."""
    # The last batch of 8 has 5 queries: shares of 2 and 3.
    folder = tmp_path_factory.mktemp("two")
    return *run_training(folder, 2, 4, queries=21), folder


def test_two_processes_train_as_one(two, tmp_path):
    found, printed, folder = two
    assert_trained_alike(found, run_training(tmp_path, 1, 8, queries=21)[0])
    # Logged and saved once.
    assert printed.count("epoch 1/2") == 1
    assert len(list((folder / "tensorboard").rglob("events.*"))) == 1
    assert not list((folder / "checkpoints").glob(".*"))
    assert len(list((folder / "checkpoints").glob("*/model*"))) == 2


def test_two_processes_train_on_videos_of_unequal_length_as_one(tmp_path):
    # They have unequal numbers of valid cells.
    one, other = (
        run_training(tmp_path / str(count), count, 8 // count, queries=16, clip_seconds=6)[0]
        for count in (1, 2)
    )
    assert_trained_alike(other, one)


def test_what_several_processes_saved_is_resumed(two, tmp_path):
    whole, _, folder = two
    parts = tmp_path / "parts"
    shutil.copytree(folder, parts)
    shutil.rmtree(max((parts / "checkpoints").glob("*")))
    resumed, _ = run_training(parts, 2, 4, queries=21, resume=True)
    assert len(resumed["losses"]) == len(whole["losses"]) / 2
    for name, value in whole["raw"].items():
        assert torch.equal(resumed["raw"][name], value), name


def test_each_query_is_evaluated_once_on_any_number_of_processes(tmp_path):
    found = {}
    for count in (1, 2, 3):
        results = run_evaluation(tmp_path / str(count), count, 23)
        assert all(result == results[0] for result in results)
        found[count] = results[0]
    for count in (2, 3):
        assert found[count]["qids"] == found[1]["qids"]
        assert len(found[count]["qids"]) == 23
        assert found[count]["metrics"] == pytest.approx(found[1]["metrics"])
        torch.testing.assert_close(
            torch.tensor(found[count]["windows"]), torch.tensor(found[1]["windows"])
        )
        assert found[count]["confidence"] == pytest.approx(found[1]["confidence"])


def test_more_processes_than_queries(tmp_path):
    for found in run_evaluation(tmp_path, 3, 2):
        assert len(found["qids"]) == 2
