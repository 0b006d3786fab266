"""Settings of a run: device, sizes, dtypes; and models and inputs that suites share."""

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

# Backends of all operations: plain torch, and the library's defaults.
REFERENCE = "map_conv=direct,stylization=reference,styled_residual=reference,gate=reference"
AUTO = ""

# The paper's maps and kernels with fewer channels: for CPUs, and for --quick.
STACKS = {"stack128": 128, "stack16": 16}
PRESET_NAMES = (*PRESETS, *FORMER_NAMES, *STACKS)

VOCABULARY_SIZE, CLIP_CHANNELS, WORDS = 500, 256, 12
DATA_SIZES = {"vocabulary_size": VOCABULARY_SIZE, "clip_channels": CLIP_CHANNELS}
STEPS = 10

# Inputs rotated on a GPU fill its cache at least twice, up to a largest number of inputs.
_GPU_CACHE_BYTES, _MOST_INPUTS = 64 * 2**20, 32
_FEWEST_INPUTS = 3

Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True)
class Setting:
    """Settings of a run."""

    device: torch.device
    dtypes: Sequence[torch.dtype]
    batches: Sequence[int] = ()  # batch sizes; defaults to each suite's
    preset: str | None = None  # sizes; defaults to each suite's
    compiled: bool = True  # whether to measure `torch.compile` of the reference
    quick: bool = False  # whether to use the smallest sizes
    baseline: Path | None = None  # another checkout to compare with
    cpu_time: bool = False  # whether to measure the CPU time of one thread, not wall time
    # Whether maps have a decoder's layout: durations outermost, channels innermost.
    as_in_decoder: bool = False

    @property
    def on_gpu(self) -> bool:
        """Whether the device is a GPU."""
        return self.device.type == "cuda"

    def preset_name(self, *, cpu: str, quick: str = "stack16") -> str:
        """Return the preset of a suite: the chosen one, or its default for the device."""
        own = "paper" if self.on_gpu else cpu
        return self.preset or (quick if self.quick else own)

    def batch_sizes(self, *, gpu: Sequence[int], cpu: Sequence[int]) -> Sequence[int]:
        """Return the batch sizes of a suite: the chosen ones, or its defaults for the device."""
        own = gpu if self.on_gpu else cpu
        return self.batches or ((2,) if self.quick else own)

    def training_batch_sizes(self) -> Sequence[int]:
        """Return the batch sizes of training; batch normalization cannot train on one query."""
        return [one for one in self.batch_sizes(gpu=(32,), cpu=(32,)) if one > 1]

    def num_inputs(self, item_bytes: int) -> int:
        """Return how many inputs of a size to rotate."""
        if not self.on_gpu:
            return _FEWEST_INPUTS
        return min(max(2 * _GPU_CACHE_BYTES // item_bytes, _FEWEST_INPUTS), _MOST_INPUTS)

    def layout(self, maps: Tensor) -> Tensor:
        """Convert maps to the memory layout of models on the device."""
        if self.as_in_decoder:
            return maps.permute(3, 2, 0, 1).contiguous().permute(2, 3, 1, 0)
        return maps.contiguous(memory_format=memory_format(self.device, maps.dtype))

    def random(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Draw normal numbers."""
        return torch.randn(*shape, device=self.device, dtype=dtype)


def memory_format(device: torch.device, dtype: torch.dtype) -> torch.memory_format:
    """Return the layout for direct convolution: channels_last in half precision on a GPU."""
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
    """Set the backends of all operations, replacing the user's setting."""
    with patch.dict(os.environ):
        os.environ.pop(BACKEND_VARIABLE, None)
        if named:
            os.environ[BACKEND_VARIABLE] = named
        yield


@contextmanager
def inference(named: str) -> Iterator[None]:
    """Set the backends, and compute without gradients."""
    with backends(named), torch.no_grad():
        yield


def map_conv_backends(setting: Setting) -> dict[str, str]:
    """Return the ways to run a model without gradients, with the backends of each.

    The reference is first, as planning it drops the spectra that the others cache.
    """
    names = {"reference": REFERENCE, "spectral": "map_conv=spectral"}
    if setting.on_gpu:
        names["fused"] = "map_conv=fused"
    return {**names, "auto": AUTO}


# Only one is cached, as the paper's model is large.
@lru_cache(maxsize=1)
def make_localizer(name: str, device: torch.device, dtype: torch.dtype) -> MomentLocalizer:
    return _prepared(_build(name, device), device, dtype).eval()


def make_trainable(name: str, device: torch.device, dtype: torch.dtype) -> MomentLocalizer:
    """Make a localizer for training in a dtype, with weights in float32 and the dtype's layout."""
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
    """Move a model, and replace zero weights, which would hide errors of new residual blocks."""
    for parameter in model.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.02)
    layout = memory_format(device, dtype)
    return model.to(device=device, dtype=dtype, memory_format=layout)


def map_features(
    setting: Setting, grid: MapGrid, channels: int, batch: int, dtype: torch.dtype
) -> list[Tensor]:
    """Draw features like the encoder's: of unit norm, 0 in invalid cells."""
    features = []
    for scale, (rows, columns) in enumerate(grid.shapes):
        drawn = F.normalize(setting.random(batch, channels, rows, columns), dim=1)
        drawn = drawn * grid.mask(scale, setting.device)
        features.append(setting.layout(drawn.to(dtype)))
    return features


def feature_bytes(grid: MapGrid, channels: int, batch: int, dtype: torch.dtype) -> int:
    """Return the bytes of one such set of features."""
    return batch * channels * grid.num_cells * dtype.itemsize


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function, after clearing what was compiled for other sizes."""
    torch.compiler.reset()
    return torch.compile(function)


def first_sample(result: Tensor) -> list[Tensor]:
    """Return the first sample's output, which is compared with float64."""
    return [result[:1]]
