"""The map convolution as a product at each frequency.

Input maps may have any strides. Results have durations outermost and channels innermost, the order
in which transforms and products read and write; elementwise operations keep it.
"""

from typing import Any

import torch
from torch import Tensor

from tmapdiff.kernels._alignment import aligned_channels, with_channels
from tmapdiff.kernels._derivatives import gradients_of
from tmapdiff.kernels.map_conv import reference
from tmapdiff.kernels.map_conv.scaling import gradient_room, grow_, kernel_room, shrunk
from tmapdiff.kernels.map_conv.transforms import MapTransform


def multiply_spectra(spectra: Tensor, kernel: Tensor) -> Tensor:
    """Multiply rotated spectra of maps with that of a kernel, at each frequency."""
    times_i, plain = _planes(spectra)
    product = torch.bmm(plain, kernel[:, 0]).baddbmm_(times_i, kernel[:, 1])
    return product.view(len(product), 2, *spectra.shape[2:4], kernel.shape[-1])


def _planes(spectra: Tensor) -> tuple[Tensor, Tensor]:
    """View the first two and the last two planes of rotated spectra: (frequencies, rows, C)."""
    return spectra[:, :2].flatten(1, 3), spectra[:, 1:].flatten(1, 3)


def convolve_with_spectrum(
    x: Tensor,
    kernel: Tensor,
    bias: Tensor | None,
    transform: MapTransform,
    channels: int,
    *,
    exponent: Tensor | None = None,
    fused: bool = False,
) -> Tensor:
    """Convolve maps with a kernel of known spectrum, which has `aligned_channels`.

    `exponent`, for float16 only, is that of the power of two that scaled the kernel down. `fused`
    multiplies spectra with the Triton kernel.
    """
    of_maps = None
    if exponent is not None:
        # Scale each map separately, so that samples do not affect each other.
        x, of_maps = shrunk(x, (1, 2, 3), 0)
    spectra = transform.forward(_durations_first(x), rotated=not fused)
    if fused:
        from tmapdiff.kernels.map_conv import triton

        product = triton.multiply_spectra(spectra, kernel)
    else:
        product = multiply_spectra(spectra, kernel)
    if exponent is None or of_maps is None:
        return _maps_of(product, bias, transform)[:, :channels]
    result = grow_(_maps_of(product, None, transform)[:, :channels], of_maps + exponent)
    return result if bias is None else result.add_(bias[:, None, None])


def _maps_of(product: Tensor, bias: Tensor | None, transform: MapTransform) -> Tensor:
    if bias is not None:
        # A constant map only has frequency 0.
        product[0, 0, ..., : len(bias)] += bias / transform.scale
    return _batch_first(transform.inverse(product))


@torch.library.custom_op("tmapdiff::map_conv_spectral", mutates_args=())
def spectral_map_conv(x: Tensor, weight: Tensor, bias: Tensor | None, tile: int) -> Tensor:
    """Convolve maps as `reference.map_conv` does, in tiles of `tile` starts.

    Does not save spectra for the gradient, as they are larger than maps and kernel. If memory does
    not matter, `spectral_map_conv_keeping` is faster.
    """
    transform = _transform(x, weight, tile)
    kernel, exponent = shrunk_kernel(weight, transform, x.dtype)
    kernel = transform.kernel(with_aligned_channels(kernel))
    return convolve_with_spectrum(x, kernel, bias, transform, len(weight), exponent=exponent)


def with_aligned_channels(weight: Tensor) -> Tensor:
    """Pad a kernel, (D, C, S, S), with zero output channels where that speeds up products."""
    return with_channels(weight, aligned_channels(len(weight), weight.device), 0)


def shrunk_kernel(
    weight: Tensor, transform: MapTransform, dtype: torch.dtype
) -> tuple[Tensor, Tensor | None]:
    """Scale a kernel, (D, C, S, S), down for float16; other dtypes need no exponent."""
    if dtype != torch.float16:
        return weight, None
    return shrunk(weight, (0, 1, 2, 3), kernel_room(transform, weight.shape[1]))


@spectral_map_conv.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, tile: int) -> Tensor:
    batch, _, rows, columns = x.shape
    channels = aligned_channels(len(weight), x.device)
    return _batch_first(x.new_empty(columns, rows, batch, channels))[:, : len(weight)]


@torch.library.custom_op("tmapdiff::map_conv_spectral_backward", mutates_args=())
def _backward(
    gradient: Tensor, x: Tensor, weight: Tensor, tile: int, of_x: bool, of_weight: bool
) -> tuple[Tensor, Tensor, Tensor]:
    transform = _transform(x, weight, tile)
    if gradient.dtype != torch.float16:
        return _gradients(gradient, x, weight, transform, of_x, of_weight)
    everything = (0, 1, 2, 3)
    gradient, above = shrunk(gradient, everything, gradient_room(transform, len(x)))
    x, below = shrunk(x, everything, 0)
    weight, of_kernel = shrunk(weight, everything, kernel_room(transform, weight.shape[0]))
    gradients = _gradients(gradient, x, weight, transform, of_x, of_weight)
    exponents = above + of_kernel, above + below, above.flatten()
    for one, exponent in zip(gradients, exponents, strict=True):
        if one.numel():
            grow_(one, exponent)
    return gradients


def _gradients(
    gradient: Tensor,
    x: Tensor,
    weight: Tensor,
    transform: MapTransform,
    of_x: bool,
    of_weight: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    above = _spectra_of_gradient(gradient, transform)
    of_maps, of_kernel = x.new_empty(0), weight.new_empty(0)
    if of_x:
        kernel = transform.kernel(with_aligned_channels(weight))
        of_maps = _gradient_of_maps(above, kernel, transform)
        del kernel
    if of_weight:
        spectra = transform.forward(_durations_first(x), rotated=True)
        of_kernel = _gradient_of_kernel(above, spectra, transform, len(weight))
    return of_maps, of_kernel, _gradient_of_bias(above, transform, len(weight))


def _spectra_of_gradient(gradient: Tensor, transform: MapTransform) -> Tensor:
    channels = aligned_channels(gradient.shape[1], gradient.device)
    above = with_channels(_durations_first(gradient), channels, -1)
    return transform.inverse_adjoint(above, rotated=True)


def _gradient_of_maps(above: Tensor, kernel: Tensor, transform: MapTransform) -> Tensor:
    plain, over_i = _planes(above)
    spectra = torch.bmm(plain, kernel[:, 0].mT).baddbmm_(over_i, kernel[:, 1].mT)
    spectra = spectra.view(len(spectra), 2, *above.shape[2:4], spectra.shape[-1])
    return _batch_first(transform.forward_adjoint(spectra))


def _gradient_of_kernel(
    above: Tensor, spectra: Tensor, transform: MapTransform, channels: int
) -> Tensor:
    plain, _ = _planes(above)
    times_i, below = _planes(spectra)
    real, imaginary = torch.bmm(plain.mT, below), torch.bmm(plain.mT, times_i)
    return transform.kernel_adjoint(real.mT, imaginary.mT)[:channels].contiguous()


def _gradient_of_bias(above: Tensor, transform: MapTransform, channels: int) -> Tensor:
    return above[0, 0].flatten(0, 1)[:, :channels].sum(dim=0) / transform.scale


@_backward.register_fake
def _(
    gradient: Tensor, x: Tensor, weight: Tensor, tile: int, of_x: bool, of_weight: bool
) -> tuple[Tensor, Tensor, Tensor]:
    batch, channels, rows, columns = x.shape
    of_maps = _batch_first(x.new_empty(columns, rows, batch, channels))
    return (
        of_maps if of_x else x.new_empty(0),
        weight.new_empty(weight.shape) if of_weight else weight.new_empty(0),
        weight.new_empty(weight.shape[0]),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, _, ctx.tile = inputs
    ctx.save_for_backward(x, weight)


def _apply_backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors[:2]
    wanted = ctx.needs_input_grad[:3]
    if torch.is_grad_enabled():
        bias = gradient.new_zeros(len(weight)).requires_grad_()  # gradients do not depend on it
        inputs = x, weight, bias
        return *gradients_of(reference.map_conv, inputs, wanted, gradient), None
    gradients = _backward(gradient, x, weight, ctx.tile, *wanted[:2])
    return (*(one if want else None for one, want in zip(gradients, wanted, strict=True)), None)


spectral_map_conv.register_autograd(_apply_backward, setup_context=_setup_context)


def spectral_map_conv_keeping(x: Tensor, weight: Tensor, bias: Tensor | None, tile: int) -> Tensor:
    """Compute `spectral_map_conv`, bit for bit, but save the spectra for the gradient.

    Not for float16, whose scaling the spectra depend on.
    """
    return _Keeping.apply(x, weight, bias, tile)


class _Keeping(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, tile: int) -> Tensor:
        ctx.transform, ctx.tile = _transform(x, weight, tile), tile
        kernel = ctx.transform.kernel(with_aligned_channels(weight))
        spectra = ctx.transform.forward(_durations_first(x), rotated=True)
        of_x, of_weight = ctx.needs_input_grad[:2]
        kept = kernel if of_x else None, spectra if of_weight else None
        ctx.save_for_backward(x, weight, *kept)
        maps = _maps_of(multiply_spectra(spectra, kernel), bias, ctx.transform)
        return maps[:, : len(weight)]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            return _apply_backward(ctx, gradient)
        _, weight, kernel, spectra = ctx.saved_tensors
        transform, channels = ctx.transform, len(weight)
        above = _spectra_of_gradient(gradient, transform)
        return (
            None if kernel is None else _gradient_of_maps(above, kernel, transform),
            None if spectra is None else _gradient_of_kernel(above, spectra, transform, channels),
            _gradient_of_bias(above, transform, channels) if ctx.needs_input_grad[2] else None,
            None,
        )


def _transform(x: Tensor, weight: Tensor, tile: int) -> MapTransform:
    return MapTransform(x.shape[2], x.shape[3], weight.shape[-1], tile)


def _durations_first(x: Tensor) -> Tensor:
    return x.permute(3, 2, 0, 1)


def _batch_first(x: Tensor) -> Tensor:
    return x.permute(2, 3, 1, 0)
