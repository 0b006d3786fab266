"""Runs as CUDA graphs are the runs themselves; on a GPU if there is one, or else recorded."""

import copy
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from helpers.assertions import assert_close, assert_same, refuses
from helpers.contracts import draw, randomize_
from helpers.cuda_graphs import cuda_graphs
from helpers.host_sync import no_host_sync, on_a_device
from torch import Tensor

from tmapdiff.models import MapDiffusionDecoder, MomentLocalizer, MultimodalEncoder
from tmapdiff.models.captured_runs import CapturedRuns
from tmapdiff.models.localizer import _last_maps
from tmapdiff.schedulers import MapScheduler

GRID = {"num_clips": 8, "num_anchors": 4, "num_scales": 2}
CHANNELS = 8

KINDS: dict[str, dict[str, Any]] = {
    "conv": {},
    "folded": {"stylization": "conv"},
    "layer norm": {"norm": "layer", "gate": "channel"},
    "multiply": {"conditioning": "multiply-gated"},
    "transformer": {"architecture": "transformer", "num_heads": 2, "num_layers": 2},
    "joint": {"architecture": "transformer", "num_heads": 2, "joint_scales": True},
    "attention": {
        "architecture": "transformer",
        "num_heads": 2,
        "conditioning": "cross-attention",
    },
}


def build(
    *, objective: str = "mse-full", normalize: bool = True, **decoder: Any
) -> MomentLocalizer:
    parts = (
        MultimodalEncoder(
            **GRID, vocabulary_size=12, clip_channels=6, word_channels=4, channels=CHANNELS
        ),
        MapDiffusionDecoder(
            **GRID,
            feature_channels=CHANNELS,
            channels=CHANNELS,
            time_channels=8,
            **{"kernel_sizes": (3, 5), "num_groups": 4, **decoder},
        ),
        MapScheduler(normalize_input=normalize),
    )
    return MomentLocalizer.from_parts(*parts, objective=objective).eval()


def make(**fields: Any) -> MomentLocalizer:
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return randomize_(build(**fields)).to(device)


def drawn(model: MomentLocalizer, batch: int, seed: int, num_clips: int = 8) -> dict[str, Any]:
    grid = model.grid.resized(num_clips)
    features = [draw(batch, CHANNELS, *shape, seed=seed) for shape in grid.shapes]
    return {
        "features": [one.to(model.device, model.dtype) for one in features],
        "noise": draw(batch, grid.num_cells, seed=seed + 100).to(model.device),
    }


def step_by_step(model: MomentLocalizer, **inputs: Any) -> Tensor:
    return without_graphs(model).sample_maps(**inputs)


def without_graphs(model: MomentLocalizer) -> MomentLocalizer:
    plain = copy.deepcopy(model)
    plain.disable_cuda_graphs()
    return plain


@pytest.fixture
def replays() -> Iterator[list[int] | None]:
    if torch.cuda.is_available():
        yield None
    else:
        with cuda_graphs() as counted:
            yield counted


@pytest.mark.parametrize("kind", KINDS)
def test_gives_what_steps_give(replays, kind: str) -> None:
    model = make(**KINDS[kind])
    model.enable_cuda_graphs()
    for seed in range(3):
        inputs = drawn(model, 3, seed)
        assert_close(model.sample_maps(**inputs), step_by_step(model, **inputs))
    if replays is not None:
        assert replays == [3]


@pytest.mark.parametrize("objective", ["mse-full", "bce-full"])
@pytest.mark.parametrize("normalize", [False, True])
def test_gives_what_steps_give_whatever_is_learned(
    replays, objective: str, normalize: bool
) -> None:
    model = make(objective=objective, normalize=normalize)
    model.enable_cuda_graphs()
    for seed in range(2):
        inputs = drawn(model, 2, seed)
        assert_close(model.sample_maps(**inputs), step_by_step(model, **inputs))


def test_each_kind_of_inputs_has_its_graph(replays) -> None:
    model = make()
    model.enable_cuda_graphs(most=8)
    counted = torch.tensor([8, 6], device=model.device)
    runs: list[dict[str, Any]] = [
        drawn(model, 2, 0),
        drawn(model, 3, 1),
        {**drawn(model, 2, 2), "num_inference_steps": 3},
        {**drawn(model, 2, 3), "num_clips": counted},
        {**drawn(model, 2, 4, num_clips=12), "num_clips": counted + 4},
    ]
    for _ in range(2):
        for inputs in runs:
            assert_close(model.sample_maps(**inputs), step_by_step(model, **inputs))
    # Videos of other lengths are of the same kind.
    inputs = {**drawn(model, 2, 5), "num_clips": counted.flip(0)}
    assert_close(model.sample_maps(**inputs), step_by_step(model, **inputs))
    # And whatever a graph wrote, masks that all share are as they were.
    assert_close(model.sample_maps(**runs[0]), step_by_step(model, **runs[0]))
    if replays is not None:
        assert replays == [3, 2, 2, 3, 2]


def test_the_graph_used_last_is_kept(replays) -> None:
    model = make()
    model.enable_cuda_graphs(most=2)
    one, two, three = (drawn(model, batch, 0) for batch in (1, 2, 3))
    for inputs in (one, two, one, three, one, two):
        assert_close(model.sample_maps(**inputs), step_by_step(model, **inputs))
    assert len(model._captured_runs) == 2
    if replays is not None:
        assert replays == [3, 1, 1, 1]  # of two, again


def test_follows_the_weights(replays) -> None:
    model = make()
    model.enable_cuda_graphs()
    inputs = drawn(model, 2, 0)
    before = model.sample_maps(**inputs)
    with torch.no_grad():
        for one in model.decoder.parameters():
            one.mul_(1.25)
    after = model.sample_maps(**inputs)
    assert not torch.allclose(before, after)
    assert_close(after, step_by_step(model, **inputs))
    if replays is not None:
        assert replays == [2]
    # Weights that are elsewhere are not those of the graph.
    for one in model.decoder.decoders:
        one.head.weight = torch.nn.Parameter(1.5 * one.head.weight.detach())
    assert_close(model.sample_maps(**inputs), step_by_step(model, **inputs))
    model.double()
    inputs = drawn(model, 2, 0)
    assert_close(model.sample_maps(**inputs), step_by_step(model, **inputs))


def test_results_and_inputs_stay(replays) -> None:
    model = make()
    model.enable_cuda_graphs()
    first, second = drawn(model, 2, 0), drawn(model, 2, 1)
    kept = copy.deepcopy(first)
    result = model.sample_maps(**first)
    expected = result.clone()
    model.sample_maps(**second)
    assert_same(result, expected)
    for one, before in zip(first["features"], kept["features"], strict=True):
        assert_same(one, before)
    assert_same(first["noise"], kept["noise"])


def test_what_a_run_returned_stays(replays) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    runs, one = CapturedRuns(1), torch.ones(2, device=device)
    first = runs(torch.exp, [], one)
    runs(torch.exp, [], 2 * one)
    assert_same(first, one.exp())


def test_several_samples(replays) -> None:
    model = make()
    features = drawn(model, 2, 0)["features"]

    def samples(one: MomentLocalizer) -> Tensor:
        generator = torch.Generator(one.device).manual_seed(3)
        return one.draw_samples(features, 3, generator=generator)

    expected = samples(without_graphs(model))
    model.enable_cuda_graphs()
    assert_close(samples(model), expected)
    if replays is not None:
        assert replays == [3]


def test_other_runs_are_done_step_by_step(replays) -> None:
    model = make()
    model.enable_cuda_graphs()
    inputs = drawn(model, 2, 0)
    seen = []
    model.sample_maps(**inputs, callback=seen.append)
    model.sample_maps(**inputs, eta=0.5)
    model.sample_maps(**drawn(model, 0, 0))
    model.train()
    model.sample_maps(**inputs)
    model.eval()
    model.scheduler = MapScheduler(solver="dpmsolver++")
    model.sample_maps(**inputs)
    assert len(seen) == 2
    assert len(model._captured_runs) == 0
    model.scheduler = MapScheduler()
    model.disable_cuda_graphs()
    model.sample_maps(**inputs)
    if replays is not None:
        assert replays == []


def test_on_a_cpu_nothing_is_captured() -> None:
    model = make().cpu()
    model.enable_cuda_graphs()
    inputs = drawn(model, 2, 0)
    assert_same(model.sample_maps(**inputs), step_by_step(model, **inputs))
    assert len(model._captured_runs) == 0


def test_inference_mode_has_graphs_of_its_own(replays) -> None:
    model = make()
    model.enable_cuda_graphs()
    inputs = drawn(model, 2, 0)
    expected = step_by_step(model, **inputs)
    for _ in range(2):
        assert_close(model.sample_maps(**inputs), expected)
        with torch.inference_mode():
            assert_close(model.sample_maps(**inputs).clone(), expected)
    assert len(model._captured_runs) == 2


def test_weights_are_cast_in_each_replay(replays) -> None:
    """What autocast keeps of casts is gone when it ends; a graph would go on reading it."""
    seen = []

    def run(x: Tensor) -> Tensor:
        seen.append(torch.is_autocast_cache_enabled())
        return x + 1

    device = "cuda" if torch.cuda.is_available() else "cpu"
    assert torch.is_autocast_cache_enabled()
    CapturedRuns(1)(run, [], torch.ones(2, device=device))
    assert seen == [False] * 3
    assert torch.is_autocast_cache_enabled()


def test_copies_start_without() -> None:
    runs = CapturedRuns(3)
    runs._captured["one"] = None  # type: ignore[assignment]
    for other in (copy.deepcopy(runs), pickle.loads(pickle.dumps(runs))):
        assert (other.most, len(other)) == (3, 0)


def test_number_of_graphs_is_checked() -> None:
    refuses(
        "MomentLocalizer.enable_cuda_graphs: expected most >= 1, got 0.",
        lambda: make().enable_cuda_graphs(0),
    )


def test_a_run_that_reads_values_is_not_captured(replays) -> None:
    """As the recorded ones: else these tests would not find what a GPU refuses."""
    if replays is None:
        pytest.skip("a failed capture leaves a GPU of no use to the tests that follow")
    runs = CapturedRuns(1)
    for wrong in (lambda x: x * float(x[0]), lambda x: x + torch.tensor([1.0]), lambda x: x[x > 0]):
        with pytest.raises(RuntimeError, match="not permitted when stream is capturing"):
            runs(wrong, [], torch.ones(2))
    assert len(runs) == 0


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
@pytest.mark.parametrize("counted", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_steps_wait_for_no_device(monkeypatch, kind: str, counted: bool) -> None:
    """On a device that has shapes only: copies to and from it are seen, too."""
    monkeypatch.setenv("TMAPDIFF_BACKEND", "reference,map_conv=direct")
    with on_a_device() as put, torch.no_grad():
        with torch.device("cuda"):
            model = build(**KINDS[kind])
        features = [put(torch.zeros(2, CHANNELS, *shape)) for shape in model.grid.shapes]
        num_clips = put(torch.tensor([8, 6])) if counted else None
        prepared = model.decoder.prepare(features, put(torch.tensor([900, 100])), num_clips)
        maps = put(torch.zeros(2, model.grid.num_cells))
        with no_host_sync():
            result = _last_maps(prepared, maps, maps, put(torch.zeros(2, 4)), "sigmoid", True)
        assert (result.device.type, result.shape) == ("cuda", maps.shape)
