import torch

from tmapdiff.kernels.map_conv.costs import (
    ConvSizes,
    best_transform,
    direct_operations,
    direct_seconds,
    spectral_seconds,
)


def sizes(batch: int, device: str = "cuda", kernel_size: int = 17) -> ConvSizes:
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    return ConvSizes(batch, 1024, 513, 64, 16, kernel_size, dtype, device)


def test_operations_are_those_of_the_definition() -> None:
    small = ConvSizes(2, 3, 5, 7, 4, 3, torch.float32, "cpu")
    # One product and one sum per sample, cell, output channel, input channel and tap.
    assert direct_operations(small) == 2 * 2 * (7 * 4) * 5 * 3 * 9


def test_large_kernels_are_cheaper_as_spectra_and_small_ones_are_not() -> None:
    for device in ("cpu", "cuda"):
        large, small = sizes(64, device), sizes(64, device, kernel_size=1)
        transform = best_transform(large, with_kernel=False)
        assert spectral_seconds(large, transform, with_kernel=False) < direct_seconds(large) / 8
        transform = best_transform(small, with_kernel=False)
        assert spectral_seconds(small, transform, with_kernel=False) > direct_seconds(small)


def test_small_batches_take_short_tiles() -> None:
    tiles = [best_transform(sizes(batch), with_kernel=False).tile for batch in (1, 8, 32, 64, 256)]
    assert tiles == sorted(tiles)
    assert tiles[0] < tiles[-1] == 64
