"""Operations and their inputs; memory that betrays kernels which read or write too much."""

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from helpers.contracts import draw, triangle
from torch import Tensor

from tmapdiff.kernels.gate import gate_features
from tmapdiff.kernels.map_conv import map_conv
from tmapdiff.kernels.masking import fill_invalid, masked_group_norm
from tmapdiff.kernels.styled_residual import add_styled
from tmapdiff.kernels.stylization import stylize
from tmapdiff.models.encoder import unit_product

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ZONE = 64  # elements before and after a tensor
_SENTINEL = -12345.0

LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x.contiguous(),
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "transposed": lambda x: x.mT.contiguous().mT,
    # As spectral convolutions make them: durations, starts, samples, channels.
    "durations_outermost": lambda x: x.permute(3, 2, 0, 1).contiguous().permute(2, 3, 1, 0),
    "slice": lambda x: _between(x, 1),
    "slice_channels_last": lambda x: _between(x, -1),
}


def _between(x: Tensor, axis: int) -> Tensor:
    """Channels of a tensor with NaN channels around, which lie at an axis of memory."""
    moved = x.movedim(1, axis)
    around = torch.full_like(moved, torch.nan)
    wide = torch.cat([around, moved, around], dim=axis).contiguous()
    return wide.narrow(axis, x.shape[1], x.shape[1]).movedim(axis, 1)


def _caller_is_ours() -> bool:
    return str(sys._getframe(2).f_globals["__name__"]).startswith("tmapdiff.")


def guard(tensor: Tensor) -> Tensor:
    """Copy of a dense tensor of the same strides, on the device, with NaN before and after it."""
    memory = torch.full((tensor.numel() + 2 * ZONE,), torch.nan, dtype=tensor.dtype, device=DEVICE)
    copy = memory.as_strided(tensor.shape, tensor.stride(), ZONE)
    return copy.copy_(tensor)


class Allocations:
    """Patches what tmapdiff allocates with: fills it with NaN, and watches the zones around it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.memories: list[tuple[Tensor, int]] = []
        self.empty, new_empty = torch.empty, torch.Tensor.new_empty

        def guarded_empty(*arguments: Any, **options: Any) -> Tensor:
            make = self._guarded if _caller_is_ours() else self.empty
            return make(*arguments, **options)

        def guarded_new_empty(tensor: Tensor, *arguments: Any, **options: Any) -> Tensor:
            if not _caller_is_ours():
                return new_empty(tensor, *arguments, **options)
            options = {"dtype": tensor.dtype, "device": tensor.device, **options}
            return self._guarded(*arguments, **options)

        monkeypatch.setattr(torch, "empty", guarded_empty)
        monkeypatch.setattr(torch.Tensor, "new_empty", guarded_new_empty)

    def _guarded(
        self,
        shape: tuple[int, ...],
        *,
        dtype: torch.dtype,
        device: torch.device,
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> Tensor:
        size = math.prod(shape)
        memory = self.empty(size + 2 * ZONE, dtype=dtype, device=device)
        memory.fill_(_SENTINEL)
        memory[ZONE : ZONE + size] = torch.nan
        self.memories.append((memory, size))
        strides = self.empty(shape, device="meta", memory_format=memory_format).stride()
        return memory.as_strided(shape, strides, ZONE)

    def check(self) -> None:
        """Fail unless something was allocated, all of it was written, and nothing around it."""
        if not self.memories:
            pytest.fail("nothing was allocated")
        for memory, size in self.memories:
            sentinel = torch.full((), _SENTINEL, dtype=memory.dtype, device=memory.device)
            if bool((memory[:ZONE] != sentinel).any() | (memory[ZONE + size :] != sentinel).any()):
                pytest.fail("written outside of what was allocated")
            if bool(memory[ZONE : ZONE + size].isnan().any()):
                pytest.fail("not all was written")


MASKS = {
    "none": None,
    "shared": triangle(7, 5),
    # One sample without valid cells, one with one alone.
    "batched": torch.stack(
        [triangle(7, 5), torch.zeros(7, 5, dtype=torch.bool), torch.arange(35).view(7, 5) == 9]
    ),
}


def run(
    call: Callable[..., Tensor],
    inputs: dict[str, Tensor],
    mask: Tensor | None,
    backend: str,
    upper: Tensor | None = None,
    spoil: bool = False,
) -> dict[str, Tensor]:
    """Result and gradients of an operation, the result weighted with `upper`.

    With NaN in what arrives at invalid cells, if `spoil`.
    """
    leaves = {name: one.detach().requires_grad_() for name, one in inputs.items()}
    device = next(iter(leaves.values())).device
    mask = None if mask is None else mask.to(device)
    result = call(**leaves, mask=mask, backend=backend)
    upper = (draw(*result.shape, seed=3) if upper is None else upper).to(result)
    if spoil and mask is not None:
        upper = upper.masked_fill(~mask.unsqueeze(-3), torch.nan)
    gradients = torch.autograd.grad(result, list(leaves.values()), upper)
    return {"result": result.detach(), **dict(zip(leaves, gradients, strict=True))}


@dataclass(frozen=True)
class Operation:
    """An operation; `inputs` by the name of the argument, the maps first.

    Attributes:
        call: Called with the inputs, and with `mask` and `backend` where there are.
        inputs: Shapes of the inputs, those of each sample for 2 samples.
        backends: What computes it, the definition first.
        masked: Whether it takes a mask.
    """

    call: Callable[..., Tensor]
    inputs: dict[str, tuple[int, ...]]
    backends: tuple[str, ...] = ("reference",)
    masked: bool = True


MAPS = (2, 6, 7, 5)
STYLES = {"scale": (2, 6), "shift": (2, 6)}
KERNEL = {"weight": (4, 3, 5, 5), "bias": (4,)}
OPERATIONS = {
    "fill_invalid": Operation(lambda backend, **given: fill_invalid(**given), {"x": MAPS}),
    "masked_group_norm": Operation(
        lambda backend, **given: masked_group_norm(num_groups=3, **given), {"x": MAPS}
    ),
    "gate": Operation(
        lambda **given: gate_features(channels=3, **given),
        {"convolved": MAPS},
        ("reference", "eager", "triton"),
    ),
    "shared gate": Operation(
        lambda **given: gate_features(channels=5, **given),
        {"convolved": MAPS},
        ("reference", "eager", "triton"),
    ),
    "stylize": Operation(
        lambda **given: stylize(num_groups=3, **given),
        {"x": MAPS, **STYLES},
        ("reference", "eager", "triton"),
    ),
    "stylize by layer norm": Operation(
        lambda **given: stylize(num_groups=None, **given), {"x": MAPS, **STYLES}
    ),
    "add_styled": Operation(
        lambda **given: add_styled(num_groups=3, **given),
        {"x": MAPS, **STYLES, "weight": (6, 6), "bias": (6,)},
        ("reference", "eager"),
    ),
    "unit_product": Operation(
        lambda backend, **given: unit_product(**given), {"maps": MAPS, "vector": (2, 6)}
    ),
    "map_conv": Operation(map_conv, {"x": (2, 3, 7, 5), **KERNEL}, ("direct", "spectral"), False),
    "map_conv of long maps": Operation(
        map_conv, {"x": (2, 3, 300, 3), **KERNEL}, ("direct", "spectral"), False
    ),
}


def made(name: str, dtype: torch.dtype = torch.float64, batch: int = 2) -> dict[str, Tensor]:
    """Inputs of an operation, as leaves."""
    shapes = OPERATIONS[name].inputs.items()
    return {
        one: draw(
            *(size if place or size != 2 else batch for place, size in enumerate(shape)),
            seed=seed,
            dtype=dtype,
        ).requires_grad_()
        for seed, (one, shape) in enumerate(shapes)
    }
