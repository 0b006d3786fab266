"""Batch normalization over the batches of all training processes."""

from typing import Any

import torch
import torch.distributed as dist
from einops import reduce
from torch import Tensor, nn
from typing_extensions import Self, override

_KINDS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class SharedBatchNorm1d(nn.BatchNorm1d):
    """Batch normalization that uses the batches of all processes in training.

    It equals `BatchNorm1d`, or `BatchNorm2d` or `BatchNorm3d`, on the concatenated batches, and
    replaces `torch.nn.SyncBatchNorm`, which needs GPUs.

    Shape:
        - x, returns: (N, C, ...)
    """

    @classmethod
    def of(cls, norm: nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d) -> Self:
        """Return a layer that shares the parameters and statistics of `norm`."""
        settings = norm.eps, norm.momentum, norm.affine, norm.track_running_stats
        shared = cls(norm.num_features, *settings)
        shared.train(norm.training)
        shared._parameters, shared._buffers = norm._parameters, norm._buffers
        return shared

    def forward(self, x: Tensor) -> Tensor:
        """Normalize."""
        if not (self.training and dist.is_initialized()):
            return super().forward(x)
        rows = x.movedim(1, -1)
        values = rows.flatten(0, -2).to(torch.promote_types(x.dtype, torch.float32))
        count = values.new_tensor([len(values)])
        sums = _sum_over_processes(torch.cat([reduce(values, "n c -> c", "sum"), count]))
        count = sums[-1].detach()
        mean = sums[:-1] / count
        # Two passes, as E[x^2] - E[x]^2 loses precision.
        squares = reduce((values - mean).square(), "n c -> c", "sum")
        variance = _sum_over_processes(squares) / count
        if self.track_running_stats:
            self._remember(mean, variance * count / (count - 1))
        normalized = (values - mean) * (variance + self.eps).rsqrt()
        if self.affine:
            normalized = normalized * self.weight + self.bias
        return normalized.to(x.dtype).view(rows.shape).movedim(-1, 1)

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        momentum: Any = self.momentum
        if momentum is None:  # the mean over all batches
            momentum = 1 / (int(self.get_buffer("num_batches_tracked")) + 1)
        for name, value in (("running_mean", mean), ("running_var", variance)):
            self.get_buffer(name).lerp_(value.to(self.get_buffer(name)), momentum)
        self.get_buffer("num_batches_tracked").add_(1)

    @override
    def _check_input_dim(self, input: Tensor) -> None:
        """Accept what the replaced layer accepts, which may have more dimensions."""


def share_batch_norm(model: nn.Module) -> None:
    """Make a model's batch normalization use all processes; parameters and their names stay."""
    if any(parameter.is_cuda for parameter in model.parameters()):
        nn.SyncBatchNorm.convert_sync_batchnorm(model)
        return
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, _KINDS) and type(child) in _KINDS:
                setattr(parent, name, SharedBatchNorm1d.of(child))


class _SumOverProcesses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        # Each process's loss depends on the sum.
        return _sum_over_processes(gradient)


def _sum_over_processes(x: Tensor) -> Tensor:
    total: Tensor = _SumOverProcesses.apply(x)
    return total
