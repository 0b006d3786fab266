"""What a run measures: device, sizes, dtypes; and the models and inputs that suites share."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, TypeVar
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tmapdiff import MapGrid, MomentLocalizer
from tmapdiff.kernels._dispatch import BACKEND_VARIABLE
from tmapdiff.models import MS2DTAN
from tmapdiff.presets import FORMER_NAMES, PRESETS, Preset

# Every operation as it is defined, in plain torch; and every one as it is chosen by default.
REFERENCE = (
    "map_conv=direct,stylization=reference,styled_residual=reference,gate=reference,"
    "unit_product=reference,ddim_step=reference"
)
AUTO = ""

# The paper's maps and kernels with fewer channels: for CPUs, and for --quick.
STACKS = {"stack128": 128, "stack16": 16}
PRESET_NAMES = (*PRESETS, *FORMER_NAMES, *STACKS)

VOCABULARY_SIZE, CLIP_CHANNELS, WORDS = 500, 256, 12
DATA_SIZES = {"vocabulary_size": VOCABULARY_SIZE, "clip_channels": CLIP_CHANNELS}
STEPS = 10

# Inputs rotated on a GPU fill its cache twice at least, where that takes no more than so many.
_GPU_CACHE_BYTES, _MOST_INPUTS = 64 * 2**20, 32
_FEWEST_INPUTS = 3

Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True)
class Setting:
    """What a run measures."""

    device: torch.device  # where
    dtypes: Sequence[torch.dtype]  # in which dtypes, one after another
    batches: Sequence[int] = ()  # batch sizes; each suite's own, if empty
    preset: str | None = None  # sizes; each suite's own, if None
    compiled: bool = True  # whether `torch.compile` of the reference competes
    quick: bool = False  # whether everything is as small as can be
    baseline: Path | None = None  # another checkout, to compare training with
    cpu_time: bool = False  # whether times are what one thread computes, not what passes meanwhile
    # Whether maps lie as in a decoder: durations outermost, channels innermost.
    as_in_decoder: bool = False

    @property
    def on_gpu(self) -> bool:
        """Whether the device is a GPU."""
        return self.device.type == "cuda"

    def preset_name(self, *, cpu: str, quick: str = "stack16") -> str:
        """Name the sizes of a suite: those asked for, or its own for the device."""
        own = "paper" if self.on_gpu else cpu
        return self.preset or (quick if self.quick else own)

    def batch_sizes(self, *, gpu: Sequence[int], cpu: Sequence[int]) -> Sequence[int]:
        """Choose the batch sizes of a suite: those asked for, or its own for the device."""
        own = gpu if self.on_gpu else cpu
        return self.batches or ((2,) if self.quick else own)

    def training_batch_sizes(self) -> Sequence[int]:
        """Choose the batch sizes of training; batch normalisation cannot train on one query."""
        return [one for one in self.batch_sizes(gpu=(32,), cpu=(32,)) if one > 1]

    def num_inputs(self, item_bytes: int) -> int:
        """Tell how many inputs of a size are rotated."""
        if not self.on_gpu:
            return _FEWEST_INPUTS
        return min(max(2 * _GPU_CACHE_BYTES // item_bytes, _FEWEST_INPUTS), _MOST_INPUTS)

    def layout(self, maps: Tensor) -> Tensor:
        """Lay maps out as models of their dtype want them on the device."""
        if self.as_in_decoder:
            return maps.permute(3, 2, 0, 1).contiguous().permute(2, 3, 1, 0)
        return maps.contiguous(memory_format=memory_format(self.device, maps.dtype))

    def random(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Draw normal numbers."""
        return torch.randn(*shape, device=self.device, dtype=dtype)


def memory_format(device: torch.device, dtype: torch.dtype) -> torch.memory_format:
    """Tell which layout direct convolution wants: channels_last in half precision on a GPU."""
    half = dtype in (torch.float16, torch.bfloat16)
    return torch.channels_last if half and device.type == "cuda" else torch.contiguous_format


def each_size(
    setting: Setting, preset: str, batches: Sequence[int], build: Callable[..., Any]
) -> Iterator[tuple[dict[str, Any], torch.dtype, Callable[[], Any]]]:
    """Yield shape, dtype and `build` with its arguments, for each dtype and batch size."""
    for dtype in setting.dtypes:
        for batch in batches:
            shape = {"preset": preset, "batch": batch}
            yield shape, dtype, partial(build, setting, preset, batch, dtype)


def find_preset(name: str) -> Preset:
    if name not in STACKS:
        return PRESETS[name]
    paper, channels = PRESETS["paper"], STACKS[name]
    return replace(
        paper,
        encoder={**paper.encoder, "channels": channels},
        decoder={**paper.decoder, "channels": channels, "time_channels": channels},
    )


@contextmanager
def backends(named: str) -> Iterator[None]:
    """Let the environment name the backends of all operations, whatever the user's does."""
    with patch.dict(os.environ):
        os.environ.pop(BACKEND_VARIABLE, None)
        if named:
            os.environ[BACKEND_VARIABLE] = named
        yield


@contextmanager
def inference(named: str) -> Iterator[None]:
    """Name the backends, and keep no gradients."""
    with backends(named), torch.no_grad():
        yield


def map_conv_backends(setting: Setting) -> dict[str, str]:
    """Name the ways to run a model without gradients, and the backends of each.

    The reference comes first: planning it forgets the spectra that the others keep.
    """
    names = {"reference": REFERENCE, "spectral": "map_conv=spectral"}
    if setting.on_gpu:
        names["fused"] = "map_conv=fused"
    return {**names, "auto": AUTO}


# Few are kept: the paper's model is large.
@lru_cache(maxsize=1)
def make_localizer(name: str, device: torch.device, dtype: torch.dtype) -> MomentLocalizer:
    return _prepared(_build(name, device), device, dtype).eval()


def make_trainable(name: str, device: torch.device, dtype: torch.dtype) -> MomentLocalizer:
    """Make the localizer of a preset for training, with weights in float32, to compute in a dtype.

    Its layout is the dtype's.
    """
    model = _prepared(_build(name, device), device, torch.float32)
    return model.to(memory_format=memory_format(device, dtype)).train()


@lru_cache(maxsize=1)
def make_peer(name: str, device: torch.device, dtype: torch.dtype) -> MS2DTAN:
    with torch.device(device):
        model = find_preset(name).build_ms2dtan(**DATA_SIZES)
    return _prepared(model, device, dtype).eval()


def forget_models() -> None:
    make_localizer.cache_clear()
    make_peer.cache_clear()


def _build(name: str, device: torch.device) -> MomentLocalizer:
    with torch.device(device):
        return find_preset(name).build(**DATA_SIZES)


def _prepared(model: Module, device: torch.device, dtype: torch.dtype) -> Module:
    """Move a model, and make zeros numbers: what a new block adds is zero, whatever it does."""
    for parameter in model.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.02)
    layout = memory_format(device, dtype)
    return model.to(device=device, dtype=dtype, memory_format=layout)


def map_features(
    setting: Setting, grid: MapGrid, channels: int, batch: int, dtype: torch.dtype
) -> list[Tensor]:
    """Draw features as the encoder gives them: of unit norm, 0 in invalid cells."""
    features = []
    for scale, (rows, columns) in enumerate(grid.shapes):
        drawn = F.normalize(setting.random(batch, channels, rows, columns), dim=1)
        drawn = drawn * grid.mask(scale, setting.device)
        features.append(setting.layout(drawn.to(dtype)))
    return features


def feature_bytes(grid: MapGrid, channels: int, batch: int, dtype: torch.dtype) -> int:
    """Bytes of one such set of features."""
    return batch * channels * grid.num_cells * dtype.itemsize


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function, from nothing: what was compiled for other sizes is forgotten."""
    torch.compiler.reset()
    return torch.compile(function)


def first_sample(result: Tensor) -> list[Tensor]:
    """Give the first sample's output, which is held against float64."""
    return [result[:1]]
