"""The suites that run only when named, at their smallest sizes."""

import importlib.util

import pytest
import speed
import torch
from speed_cases import Bench, Ceilings
from speed_suites import EXTRA_SUITES, elementwise, exported, kernels, long_videos, postprocess
from timing import CpuClock, Effort

from tmapdiff import MapGrid
from tmapdiff.kernels.map_conv.costs import ConvSizes

CPU = torch.device("cpu")
SETTING = speed.Setting(CPU, [torch.float32], [4], "nano", compiled=False, quick=True)
CEILINGS = Ceilings(1e10, {torch.float32: 1e11})
BENCH = Bench(CPU, CpuClock(), Effort(rounds=2, seconds=0, shortest_turn=0), CEILINGS)


def measure(name):
    """Run a suite, and check that nothing fails."""
    records = [one for case in EXTRA_SUITES[name](SETTING) for one in case.measure(BENCH)]
    assert not [one for one in records if one.error]
    assert {one.suite for one in records} == {name}
    return records


@pytest.fixture(autouse=True)
def _threads():
    before = torch.get_num_threads()
    yield
    assert torch.get_num_threads() == before


def test_operations_on_the_cpu_are_measured_beside_their_definitions():
    records = measure("operations")
    operations = ("stylize", "gate", "styled_residual")
    modes = ("forward", "forward+backward")
    assert [one.case for one in records[1::2]] == [f"{a} {b}" for a in operations for b in modes]
    for plain, ours in zip(records[::2], records[1::2], strict=True):
        assert (plain.backend, ours.backend, ours.reference) == ("reference", "eager", "reference")
        assert ours.shape == {"batch": 1, "maps": "16x8", "channels": 32}
        assert max(plain.error_vs_float64, ours.error_vs_float64) < 1e-5
    values = [torch.Size(sizes).numel() for sizes in elementwise.SIZES]
    assert values == sorted(values)


def test_arithmetic_stands_beside_the_clock():
    records = measure("choices")
    assert {one.case for one in records} == {"map_conv planned", "map_conv forward+backward"}
    assert {one.backend for one in records} >= {"reference", "spectral"}
    assert all(float(one.shape["ratio by arithmetic"]) > 0 for one in records)
    # Spectral convolution is much faster for 17x17 kernels, but not for 1x1.
    sizes = [ConvSizes(2, 16, 17, 32, 8, size, torch.float32, "cpu") for size in (17, 1)]
    large, small = (kernels.expected_ratio(one, training=False) for one in sizes)
    assert large < 0.5 < 1 < small


@pytest.mark.exhaustive
def test_long_videos_are_measured_over_the_number_of_clips(monkeypatch):
    # Timing could choose implementations that need different memory.
    monkeypatch.setenv("TMAPDIFF_BACKEND", "map_conv=direct")
    monkeypatch.setattr(long_videos, "MODELS", {"NMS": long_videos.MODELS["preset tiny, NMS"]})
    monkeypatch.setattr(long_videos, "CLIPS", (32, 64, 128))
    times, peaks = (case.measure(BENCH) for case in EXTRA_SUITES["long-videos"](SETTING))
    names = ["32 clips", "64 clips", "128 clips"]
    assert [one.backend for one in times] == [one.backend for one in peaks] == names
    assert all(one.median_us > 0 for one in times)
    assert 1.5 < peaks[2].peak_mib / peaks[1].peak_mib < 2.5


@pytest.mark.compile
@pytest.mark.parametrize("kind", ["conv", "similarity"])
def test_exported_graphs_and_the_library_do_the_same(monkeypatch, kind):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    monkeypatch.setattr(exported, "KINDS", (kind,))
    torch_one, onnx = measure("export")
    assert (torch_one.backend, onnx.backend, onnx.reference) == ("torch", "onnxruntime", "torch")
    contest = exported._contest(kind, "nano", 2)
    ours, theirs = (one.run(one.inputs[0]) for one in contest.candidates)
    assert (ours - torch.from_numpy(theirs)).abs().max() < 1e-4


@pytest.mark.exhaustive
@pytest.mark.skipif(not importlib.util.find_spec("pyarrow"), reason="comes with the extra ray")
def test_a_corpus_is_measured_between_its_files():
    records = measure("corpus")
    between, until = (
        {one.backend: one for one in records if one.case == case}
        for case in ("from the first file to the last", "until the first file")
    )
    assert list(between) == list(until) == ["one process, one thread", "one process, all threads"]
    assert all(one.items_per_second > 0 for one in between.values())


def test_batch_and_loop_give_the_same_answers():
    grid = MapGrid(16, 8, 2)
    data = postprocess.make_data(grid, 12)
    found, expected = postprocess.by_nms(grid, data), postprocess.by_nms_in_a_loop(grid, data)
    assert torch.allclose(found.scores, expected.scores, atol=1e-5)
    apart = expected.scores.diff(dim=1).amax(dim=1) < -1e-4
    assert int(apart.sum()) > 6
    assert torch.allclose(found.moments[apart], expected.moments[apart])
