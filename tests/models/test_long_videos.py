"""Time and memory grow linearly with the clips of a video."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from helpers.tiers import mostly_exhaustive
from peaks import peak_bytes
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tmapdiff.models import MS2DTAN, MomentLocalizer

CLIPS = 2048
GRID = {"num_clips": 64, "num_anchors": 4, "num_scales": 3}
ENCODER = {**GRID, "vocabulary_size": 9, "clip_channels": 4, "word_channels": 4, "channels": 4}
CASES = [
    pytest.param(kernel, ranking, id=f"{kernel}x{kernel}, {ranking}", marks=marks)
    for kernel, marks in ((17, ()), (3, pytest.mark.exhaustive))
    for ranking in ("nms", "expected-hits")
]


class _LargestTensor(TorchDispatchMode):
    """Records the size and shape of the largest tensor that an operation creates."""

    def __init__(self) -> None:
        super().__init__()
        self.largest: tuple[int, tuple[int, ...]] = (0, ())

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for one in tree_leaves(result):
            if isinstance(one, torch.Tensor):
                self.largest = max(self.largest, (one.numel(), tuple(one.shape)))
        return result


@contextmanager
def no_squares(clips: int) -> Iterator[None]:
    """Fail if a tensor has at least half as many numbers as a dense map."""
    with _LargestTensor() as made:
        yield
    numbers, shape = made.largest
    assert numbers < clips**2 / 2, f"a tensor of shape {shape} for {clips} clips"


def make_model(kernel: int, ranking: str, baseline: bool = False):
    torch.manual_seed(0)
    if baseline:
        return MS2DTAN(ENCODER, kernel_sizes=[kernel], ranking=ranking).eval()
    decoder = {**GRID, "feature_channels": 4, "channels": 4, "time_channels": 4, "num_groups": 2}
    decoder["kernel_sizes"] = [kernel, kernel]
    return MomentLocalizer(ENCODER, decoder, ranking=ranking).eval()


def ask(model, clips: int):
    random = torch.Generator().manual_seed(0)
    return model.localize(
        torch.randn(1, clips, 4, generator=random),
        torch.tensor([[3, 4]]),
        torch.tensor([2]),
        torch.ones(1),
        num_clips=torch.tensor([clips - 3]),
        **({"generator": random} if model.is_generative else {}),
    )


@pytest.fixture(autouse=True)
def _spectral_where_kernels_are_large(monkeypatch):
    monkeypatch.setenv("TMAPDIFF_BACKEND", "map_conv=spectral")


@pytest.mark.parametrize(("kernel", "ranking"), CASES)
def test_no_dense_tensor_is_made_unless_it_is_asked_for(kernel, ranking):
    model = make_model(kernel, ranking)
    with no_squares(CLIPS):
        found = ask(model, CLIPS)
    assert bool(found.ranked.valid.all())
    assert found.maps.shape == (1, found.grid.num_cells)
    for name, shape in (("dense", (1, CLIPS, CLIPS)), ("mask", (1, CLIPS, CLIPS))):
        with _LargestTensor() as made:
            assert getattr(found, name).shape == shape
        assert made.largest[0] >= CLIPS**2


@mostly_exhaustive("ranking", ["nms", "expected-hits"], "expected-hits")
def test_twice_the_clips_take_twice_the_memory(ranking):
    model = make_model(17, ranking)
    peaks = []
    for clips in (CLIPS // 2, CLIPS):
        ask(model, clips)  # fills caches
        peaks.append(peak_bytes(lambda clips=clips: ask(model, clips), torch.device("cpu")))
    assert peaks[1] <= 2.1 * peaks[0]


def test_the_loss_makes_no_dense_tensor():
    model = make_model(17, "nms").train()
    features = torch.randn(2, CLIPS, 4)
    with no_squares(CLIPS):
        model.loss(
            features,
            torch.tensor([[3, 4]] * 2),
            torch.tensor([2, 2]),
            torch.tensor([[3.0, 9.0], [100.0, 130.0]]),
            torch.ones(2),
            num_clips=torch.tensor([CLIPS, 500]),
        ).backward()


def test_neither_does_the_baseline():
    model = make_model(17, "nms", baseline=True)
    with no_squares(CLIPS):
        ask(model, CLIPS)
