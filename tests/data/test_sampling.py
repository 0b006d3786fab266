import random
import subprocess
import sys
from itertools import combinations

import numpy as np
import pytest
import torch
from helpers.processes import forks
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Dataset

from tmapdiff.data.sampling import BatchShares, EpochOrder, SeededSamples, generator_for, share_of


class Draws(Dataset):
    def __len__(self):
        return 12

    def __getitem__(self, index):
        return torch.tensor([index, torch.randint(2**40, ()).item()])


class ForeignDraws(Draws):
    def __getitem__(self, index):
        return torch.tensor([np.random.randint(2**40), random.randrange(2**40)])  # noqa: NPY002


def epoch(dataset, number, workers=0, skip=0):
    order = EpochOrder(len(dataset), seed=5)
    order.set_epoch(number)
    loader = DataLoader(SeededSamples(dataset), 4, sampler=order, num_workers=workers)
    return torch.cat(list(loader)[skip:])


def test_an_epoch_has_each_sample_once_in_an_order_of_its_own():
    orders = [epoch(Draws(), number)[:, 0].tolist() for number in (0, 1)]
    assert [sorted(order) for order in orders] == [[*range(12)]] * 2
    assert orders[0] != orders[1]
    # As torch's own sampler shuffles with this seed: results of before stay.
    expected = torch.randperm(12, generator=torch.Generator().manual_seed(6)).tolist()
    assert orders[1] == expected


def test_draws_depend_on_epoch_and_position_alone():
    first = epoch(Draws(), 0)
    torch.manual_seed(99)
    assert torch.equal(epoch(Draws(), 0), first)
    assert not torch.equal(epoch(Draws(), 1).sort(0)[0], first.sort(0)[0])
    assert len(first[:, 1].unique()) == 12


@forks
def test_workers_change_no_draws_and_seed_other_libraries_too():
    first = epoch(Draws(), 0)
    for workers in (1, 2):
        torch.manual_seed(99)
        assert torch.equal(epoch(Draws(), 0, workers), first)
    assert torch.equal(epoch(ForeignDraws(), 0, 1), epoch(ForeignDraws(), 0, 2))


def test_random_numbers_around_are_left_alone():
    torch.manual_seed(3)
    expected = torch.rand(5)
    torch.manual_seed(3)
    SeededSamples(Draws())[0, 17]
    assert torch.equal(torch.rand(5), expected)


def test_streams_depend_on_every_part_and_repeat():
    parts = [("a", 0, "b"), ("a", 1, "b"), ("c", 0, "b"), ("a", 0, "d"), ("a0", "b"), ("a", "0b")]
    draws = [generator_for(*part).random() for part in parts]
    assert draws == [generator_for(*part).random() for part in parts]
    assert all(one != other for one, other in combinations(draws, 2))


counts, processes = st.integers(0, 50), st.integers(1, 7)


@given(counts, processes)
def test_shares_are_the_whole_in_order_and_differ_by_one(count, num_processes):
    shares = [share_of(count, num_processes, process) for process in range(num_processes)]
    assert [position for share in shares for position in share] == list(range(count))
    sizes = [len(share) for share in shares]
    assert max(sizes) - min(sizes) <= 1


@given(counts, st.integers(1, 5), processes)
def test_processes_together_do_the_batches_of_one(count, batch_size, num_processes):
    order = [f"sample {position}" for position in range(count)]
    shares = [
        list(BatchShares(order, batch_size, num_processes, process))
        for process in range(num_processes)
    ]
    alone = list(BatchShares(order, batch_size * num_processes))
    for process, batches in enumerate(shares):
        sampler = BatchShares(order, batch_size, num_processes, process)
        assert len(batches) == len(sampler)
        for place, share in enumerate(batches):
            assert share == [alone[place][row] for row in sampler.rows(place)]
            assert share
    together = [[key for part in parts for key in part] for parts in zip(*shares, strict=True)]
    assert together == alone[: len(together)]
    left_out = sum(map(len, alone)) - sum(map(len, together))
    assert left_out < num_processes
    # One process leaves out a last batch of a single sample.
    assert count - sum(map(len, alone)) == (count % (batch_size * num_processes) == 1)


MADE_UP = """
import zlib
from tmapdiff.data import *
activities, videos = SyntheticActivities(3), SyntheticVideos(2)
frames = zlib.crc32(videos.frames("shapes-train-0-1").tobytes())
made = str((list(activities.annotations), list(videos.annotations), frames))
total = ActionTimelineFeatures(activities.videos)["synthetic-train-0-1"].double().sum().item()
"""


@pytest.mark.process
def test_what_is_made_up_is_the_same_in_another_process():
    here = {}
    exec(MADE_UP, here)
    command = [sys.executable, "-c", f"{MADE_UP}print(made, total, sep='\\n')"]
    made, total = subprocess.check_output(command, text=True).splitlines()
    assert made == here["made"]
    assert float(total) == pytest.approx(here["total"], rel=1e-6)
