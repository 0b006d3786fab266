"""The product of complex spectra in one Triton kernel."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from tmapdiff.kernels._launch import ceil_div, power_of_2, uses_tf32


@triton.jit
def _multiply(
    spectra, kernel, product, rows, channels, out_channels,
    spectra_frequency, spectra_part, product_frequency, product_part, kernel_frequency, kernel_part,
    ROWS: tl.constexpr, CHANNELS: tl.constexpr, OUT_CHANNELS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    # Programs that read the same part of the kernel's spectrum are adjacent, so that it is read
    # from memory once, then from the cache.
    row_blocks = tl.cdiv(rows, ROWS)
    block = tl.program_id(0)
    frequency = tl.program_id(1).to(tl.int64)
    row = (block % row_blocks) * ROWS + tl.arange(0, ROWS)
    out = (block // row_blocks) * OUT_CHANNELS + tl.arange(0, OUT_CHANNELS)
    channel = tl.arange(0, CHANNELS)
    row_inside, out_inside = row < rows, out < out_channels

    spectra += frequency * spectra_frequency + row[:, None] * channels + channel
    kernel += frequency * kernel_frequency + channel[:, None] * out_channels + out
    real = tl.zeros((ROWS, OUT_CHANNELS), dtype=tl.float32)
    from_imaginary = tl.zeros((ROWS, OUT_CHANNELS), dtype=tl.float32)
    imaginary = tl.zeros((ROWS, OUT_CHANNELS), dtype=tl.float32)
    for first in range(0, channels, CHANNELS):
        channel_inside = first + channel < channels
        read = row_inside[:, None] & channel_inside
        x_real = tl.load(spectra, mask=read, other=0.0)
        x_imaginary = tl.load(spectra + spectra_part, mask=read, other=0.0)
        read = channel_inside[:, None] & out_inside
        w_real = tl.load(kernel, mask=read, other=0.0)
        w_imaginary = tl.load(kernel + kernel_part, mask=read, other=0.0)
        real = tl.dot(x_real, w_real, real, input_precision=PRECISION)
        # Subtracted at the end, so that operands go to the tensor cores unmodified.
        from_imaginary = tl.dot(x_imaginary, w_imaginary, from_imaginary, input_precision=PRECISION)
        imaginary = tl.dot(x_real, w_imaginary, imaginary, input_precision=PRECISION)
        imaginary = tl.dot(x_imaginary, w_real, imaginary, input_precision=PRECISION)
        spectra += CHANNELS
        kernel += CHANNELS * out_channels

    product += frequency * product_frequency + row[:, None] * out_channels + out
    written = row_inside[:, None] & out_inside
    real -= from_imaginary
    tl.store(product, real.to(product.dtype.element_ty), mask=written)
    tl.store(product + product_part, imaginary.to(product.dtype.element_ty), mask=written)


def multiply_spectra(spectra: Tensor, kernel: Tensor) -> Tensor:
    """Compute `spectral.multiply_spectra` from spectra with two planes."""
    frequencies, _, tiles, batch, channels = spectra.shape
    out_channels, rows = kernel.shape[-1], tiles * batch
    product = spectra.new_empty(frequencies, 2, tiles, batch, out_channels)
    if not product.numel():
        return product
    in_tf32 = spectra.is_cuda and uses_tf32()
    # Tensor cores need at least 16 rows. Three accumulators of 64 x 64 leave registers for loads;
    # without tensor cores, operands take registers, too.
    most_channels = 64 if spectra.itemsize == 2 else 32 if in_tf32 else 16
    block = {
        "ROWS": min(max(power_of_2(rows), 16), 64),
        "CHANNELS": min(max(power_of_2(channels), 16), most_channels),
        "OUT_CHANNELS": min(max(power_of_2(out_channels), 16), 64),
    }
    blocks = ceil_div(rows, block["ROWS"]) * ceil_div(out_channels, block["OUT_CHANNELS"])
    with torch.cuda.device_of(spectra):
        _multiply[(blocks, frequencies)](
            spectra, kernel, product, rows, channels, out_channels,
            *spectra.stride()[:2], *product.stride()[:2], *kernel.stride()[:2],
            **block, PRECISION="tf32" if in_tf32 else "ieee",
            num_warps=4 if block["ROWS"] < 32 else 8, num_stages=3,
        )  # fmt: skip
    return product
