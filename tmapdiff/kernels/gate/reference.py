"""The definition of the gate."""

import torch
import torch.nn.functional as F
from torch import Tensor

from tmapdiff.kernels.masking import fill_invalid


def gate_features(convolved: Tensor, mask: Tensor | None, channels: int) -> Tensor:
    """Compute `relu(features) * sigmoid(gate)` in float32 or wider; see the operation."""
    wide = convolved.to(torch.promote_types(convolved.dtype, torch.float32))
    # Fill first, as invalid cells may hold NaN. The product of zeros is 0.
    wide = fill_invalid(wide, mask)
    return (F.relu(wide[:, :channels]) * wide[:, channels:].sigmoid()).to(convolved.dtype)
