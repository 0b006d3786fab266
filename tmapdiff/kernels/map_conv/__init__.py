"""Convolution of maps with large kernels: direct, or spectral (by Fourier transforms)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tmapdiff._core.checks import check_shape
from tmapdiff.errors import ShapeError
from tmapdiff.kernels._derivatives import is_transformed
from tmapdiff.kernels._dispatch import choose_fastest
from tmapdiff.kernels._launch import TRANSFORMED, why_not_triton
from tmapdiff.kernels.map_conv import pieces, reference
from tmapdiff.kernels.map_conv.costs import (
    ConvSizes,
    best_transform,
    direct_seconds,
    spectral_seconds,
)
from tmapdiff.kernels.map_conv.spectra import KernelSpectra
from tmapdiff.kernels.map_conv.spectral import (
    convolve_with_spectrum,
    shrunk_kernel,
    spectral_map_conv,
    spectral_map_conv_keeping,
    with_aligned_channels,
)
from tmapdiff.kernels.map_conv.transforms import MapTransform

__all__ = ["KernelSpectra", "MapConvPlan", "map_conv", "plan_map_conv"]

# Below this many estimated seconds, direct convolution is not worth replacing.
_QUICK = {"cpu": 2e-4, "cuda": 1e-5}
# Ratio of estimated direct to spectral seconds. Below the first, direct is surely faster; above the
# second, spectral is. In between, both are timed, which may go wrong on a busy machine.
_DOUBTFUL = {"cpu": (0.5, 1.7)}
_DOUBTFUL_ELSEWHERE = (0.7, 8.0)
# Direct convolutions estimated to be slower than this and than spectral are not timed, as oneDNN's
# gradient of large kernels can take minutes.
_LONGEST_TRIAL = 0.2  # seconds
# Largest spectra, in numbers, to save for a gradient: those of small maps.
_MOST_KEPT = 2**23


@dataclass(frozen=True)
class MapConvPlan:
    """Plan for repeated convolutions with fixed weights.

    Args:
        backend: `direct`, `spectral`, or `fused` (spectral, with a Triton kernel for the product).
        transform: The transform, unless direct.
        spectrum: The kernel's spectrum, (frequencies, 2, C, D or more), unless direct.
        exponent: Only for float16, unless direct: exponent of the power of two that scaled the
            kernel down.
    """

    backend: str
    transform: MapTransform | None = None
    spectrum: Tensor | None = None
    exponent: Tensor | None = None


def map_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    plan: MapConvPlan | None = None,
    backend: str | None = None,
) -> Tensor:
    """Convolve maps with a kernel of odd size and zero padding; invalid cells are read, too.

    The spectral backend needs far fewer operations for large kernels: 70 times fewer for 17x17 on
    maps of 64x16. Both are differentiable any number of times, and equal up to rounding. Time and
    memory are linear in the starts of a map, as the spectral backend cuts long maps into pieces.
    `torch.func` and forward-mode differentiation use the direct backend.

    Args:
        x: Maps of any strides. Spectral results have durations outermost and channels innermost in
            memory, which suits the next layers and the next convolution.
        weight: Kernel.
        bias: Added to all cells.
        plan: From `plan_map_conv`. Replaces the weight, unless it is direct. Ignored when
            derivatives are computed.
        backend: `direct` or `spectral`. Defaults to TMAPDIFF_BACKEND, then an estimate, then
            timing.

    Shape:
        - x: (B, C, N_k, A)
        - weight: (D, C, S, S), S odd
        - bias: (D,)
        - returns: (B, D, N_k, A)

    Raises:
        ShapeError: If a shape does not fit.
        ConfigError: If there is no such backend, or it cannot run the inputs.

    Source: kernels/map_conv/README.md.
    """
    who = "kernels.map_conv"
    known = check_shape(who, "x", x, "B C N_k A")
    known = check_shape(who, "weight", weight, "D C S S", {"C": known["C"]})
    if bias is not None:
        check_shape(who, "bias", bias, "D", known)
    if known["S"] % 2 == 0:
        raise ShapeError(f"{who}: expected an odd kernel, got one of {known['S']} cells.")
    dtype = _computed_in(x.dtype, x.device)
    x, weight = x.to(dtype), weight.to(dtype)
    bias = None if bias is None else bias.to(dtype)
    inputs = [x, weight] if bias is None else [x, weight, bias]
    wanted = [one for one in inputs if one.requires_grad] if torch.is_grad_enabled() else []
    not_spectral = _not_spectral(*inputs)
    if plan is not None and not wanted and not not_spectral:
        return _run(plan, x, weight, bias)
    sizes = _sizes(x.shape, weight, x.dtype)
    at_once = pieces.at_once(sizes, planned=False)
    cut_sizes = pieces.cut_sizes(sizes, at_once)
    transform = best_transform(cut_sizes, with_kernel=True)

    def run(name: str) -> Tensor:
        if name == "direct":
            return reference.map_conv(x, weight, bias)
        keep = len(wanted) > 0 and _may_keep_spectra(cut_sizes, transform)
        convolve = spectral_map_conv_keeping if keep else spectral_map_conv
        return pieces.convolve(
            x,
            sizes.kernel_size // 2,
            at_once,
            lambda part: convolve(part, weight, bias, transform.tile),
        )

    def measure(name: str) -> None:
        result = run(name)
        if wanted:
            torch.autograd.grad(result, wanted, torch.ones_like(result))

    spectral = spectral_seconds(cut_sizes, transform, with_kernel=True)
    name = choose_fastest(
        "map_conv",
        {"direct": None, "spectral": not_spectral},
        backend,
        candidates=["direct"] if not_spectral else _candidates(sizes, spectral),
        key=_key(sizes, "train" if wanted else "once"),
        run=measure,
        device=x.device,
    )
    return run(name)


def _may_keep_spectra(sizes: ConvSizes, transform: MapTransform) -> bool:
    """Whether to save spectra for the gradient, which takes memory but avoids recomputing them."""
    if sizes.device != "cpu" or sizes.dtype == torch.float16 or torch.compiler.is_compiling():
        return False
    maps = 3 * transform.num_tiles * sizes.batch * sizes.in_channels
    kernel = 2 * sizes.in_channels * sizes.out_channels
    return transform.num_frequencies * (maps + kernel) <= _MOST_KEPT


def plan_map_conv(
    weight: Tensor,
    shape: Sequence[int],
    dtype: torch.dtype,
    *,
    spectra: KernelSpectra | None = None,
    backend: str | None = None,
) -> MapConvPlan:
    """Plan convolutions with unchanging weights, to compute the kernel's spectrum only once.

    Args:
        weight: Kernel.
        shape: Shape of the maps.
        dtype: Dtype of the maps.
        spectra: Cache of the spectrum between plans.
        backend: As for `map_conv`, or `fused`: spectral, with a Triton kernel for the product.

    Shape:
        - weight: (D, C, S, S)

    Raises:
        ConfigError: If there is no such backend, or it cannot run here.
    """
    if is_transformed(weight):
        return MapConvPlan("direct")  # values are not accessible within the transform
    dtype = _computed_in(dtype, weight.device)
    sizes = _sizes(shape, weight, dtype)
    at_once = pieces.at_once(sizes, planned=True)
    cut_sizes = pieces.cut_sizes(sizes, at_once)
    transform = best_transform(cut_sizes, with_kernel=False)
    spectra = KernelSpectra() if spectra is None else spectra
    plans: dict[str, MapConvPlan] = {}
    maps: list[Tensor] = []

    def plan(name: str) -> MapConvPlan:
        if name not in plans and name == "direct":
            plans[name] = MapConvPlan(name)
        elif name not in plans:
            kernel, exponent = shrunk_kernel(weight.detach(), transform, dtype)
            spectrum = spectra.get(with_aligned_channels(kernel), transform, dtype)
            plans[name] = MapConvPlan(name, transform, spectrum, exponent)
        return plans[name]

    def measure(name: str) -> None:
        if not maps:
            maps.append(torch.randn(*shape, dtype=dtype, device=weight.device))
        _run(plan(name), maps[0], weight.detach().to(dtype), None)

    spectral = spectral_seconds(cut_sizes, transform, with_kernel=False)
    if at_once:
        spectral *= pieces.count(sizes.rows) / at_once
    candidates = _candidates(sizes, spectral)
    not_fused = why_not_triton(weight.detach().new_empty(0, dtype=dtype))
    if "spectral" in candidates and not not_fused and sizes.device == "cuda":
        candidates.insert(candidates.index("spectral"), "fused")
    name = choose_fastest(
        "map_conv",
        {"direct": None, "spectral": _not_spectral(weight), "fused": not_fused},
        backend,
        candidates=candidates,
        key=_key(sizes, "planned"),
        run=measure,
        device=weight.device,
    )
    if name == "direct":
        spectra.clear()
    return plan(name)


def _run(plan: MapConvPlan, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    transform, spectrum = plan.transform, plan.spectrum
    if transform is None or spectrum is None:
        return reference.map_conv(x, weight, bias)

    def convolve(part: Tensor) -> Tensor:
        return convolve_with_spectrum(
            part,
            spectrum,
            bias,
            transform,
            len(weight),
            exponent=plan.exponent,
            fused=plan.backend == "fused",
        )

    at_once = pieces.at_once(_sizes(x.shape, weight, x.dtype), planned=True)
    return pieces.convolve(x, transform.kernel_size // 2, at_once, convolve)


def _candidates(sizes: ConvSizes, spectral: float) -> list[str]:
    direct = direct_seconds(sizes)
    low, high = _DOUBTFUL.get(sizes.device, _DOUBTFUL_ELSEWHERE)
    if direct < _QUICK.get(sizes.device, math.inf) or direct < low * spectral:
        return ["direct"]
    # On a GPU, timing direct convolutions is cheap, and the estimate is rougher.
    slow = direct > high * spectral or direct > max(spectral, _LONGEST_TRIAL)
    if sizes.device == "cpu" and slow:
        return ["spectral"]
    return ["direct", "spectral"] if direct < spectral else ["spectral", "direct"]


def _not_spectral(*tensors: Tensor) -> str | None:
    if is_transformed(*tensors):
        return TRANSFORMED
    return "tensors have no values" if tensors[0].device.type == "meta" else None


def _sizes(shape: Sequence[int], weight: Tensor, dtype: torch.dtype) -> ConvSizes:
    batch, channels, rows, columns = shape
    out_channels, _, size, _ = weight.shape
    device = weight.device.type
    return ConvSizes(batch, channels, out_channels, rows, columns, size, dtype, device)


def _key(sizes: ConvSizes, purpose: str) -> str:
    maps = f"{sizes.batch}x{sizes.in_channels}x{sizes.rows}x{sizes.columns}"
    kernel = f"{sizes.out_channels}x{sizes.kernel_size}"
    return f"{purpose} {maps} {kernel} {str(sizes.dtype).removeprefix('torch.')}"


def _computed_in(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """Return autocast's dtype, or the tensors' own without autocast."""
    kind = device.type
    if dtype != torch.float64 and _has_autocast(kind) and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return dtype


# Some releases of torch cannot compile this.
@torch.compiler.assume_constant_result
def _has_autocast(kind: str) -> bool:
    return torch.amp.is_autocast_available(kind)
