"""Unit product: the fusion of a video's map features with a sentence."""

import torch
from torch import Tensor

from tmapdiff._core.checks import check_shape
from tmapdiff.kernels import _launch
from tmapdiff.kernels._dispatch import choose
from tmapdiff.kernels.masking import check_map_features
from tmapdiff.kernels.unit_product import eager, reference


def unit_product(
    maps: Tensor, vector: Tensor, mask: Tensor | None = None, *, backend: str | None = None
) -> Tensor:
    """Multiply the channels of maps by one vector per sample, and scale each cell to unit norm.

    Computes in float32 or wider; cells whose norm overflows are NaN. Keeps the memory order of
    `maps`.

    Args:
        maps: Map features.
        vector: Factor of each channel.
        mask: Which cells are valid. Defaults to all.
        backend: `eager` or `reference`. Defaults to eager, if it can run.

    Shape:
        - maps: (B, C, N_k, A)
        - vector: (B, C)
        - mask: (N_k, A) or (B, N_k, A), bool
        - returns: (B, C, N_k, A), 0 in invalid cells

    Raises:
        ShapeError: If a shape does not fit.
        ConfigError: If `backend` cannot run.

    Source: MS-2D-TAN, arXiv 2012.02646, section 3.3: Hadamard product, then L2 norm.
    """
    check_map_features("unit_product", maps, mask, "C")
    sizes = {"B": maps.shape[0], "C": maps.shape[1]}
    check_shape("unit_product", "vector", vector, "B C", sizes)
    not_eager = _launch.why_not_eager(maps, vector)
    if maps.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        not_eager = "autocast chooses their dtype"
    chosen = choose("unit_product", {"eager": not_eager, "reference": None}, backend)
    run = eager.unit_product if chosen == "eager" else reference.unit_product
    return run(maps, vector, mask)
