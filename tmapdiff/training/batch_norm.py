"""Batch normalization over the batches of all training processes."""

import warnings
from typing import Any

import torch
import torch.distributed as dist
from einops import reduce
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from typing_extensions import override

from tmapdiff._core.checks import message


class SharedBatchNorm1d(nn.BatchNorm1d):
    """Batch normalization that uses the batches of all processes in training.

    It equals `BatchNorm1d`, or `BatchNorm2d` or `BatchNorm3d`, on the concatenated batches, and
    replaces `torch.nn.SyncBatchNorm`, which needs GPUs.

    Shape:
        - x, returns: (N, C, ...)
    """

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
        if self.weight is not None:
            normalized = normalized * self.weight
        if self.bias is not None:
            normalized = normalized + self.bias
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
    """Make a model's batch normalization use all processes; parameters and their names stay.

    Warns of layers that compute in their own way, which are left as they are.
    """
    on_gpu = any(parameter.is_cuda for parameter in model.parameters())
    kind: type[_BatchNorm] = nn.SyncBatchNorm if on_gpu else SharedBatchNorm1d
    for parent_name, parent in list(model.named_modules()):
        for name, child in list(parent._modules.items()):
            if not isinstance(child, _BatchNorm) or isinstance(child, kind):
                continue
            if _is_plain(child):
                parent._modules[name] = _converted(child, kind)
                continue
            expected = "batch normalization with torch's forward, to share it between processes"
            got = f"{parent_name}.{name}".lstrip(".") + f", a {type(child).__name__}"
            hint = "Each process normalizes its own batch there."
            warnings.warn(message("Trainer", expected, got, hint), stacklevel=4)


def _is_plain(norm: _BatchNorm) -> bool:
    """Return whether a layer has torch's `forward`, and weights of its own."""
    own_forward = "forward" in vars(norm) or type(norm).forward is not _BatchNorm.forward
    return not own_forward and not norm._modules  # parametrizations


def _converted(norm: _BatchNorm, kind: type[_BatchNorm]) -> _BatchNorm:
    """Return a layer that shares the parameters, statistics, settings and hooks of `norm`."""
    layer: _BatchNorm = object.__new__(kind)
    # For SyncBatchNorm, no group means all processes. Compiled calls would run `norm`.
    vars(layer).update(vars(norm), process_group=None, _compiled_call_impl=None)
    return layer


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
