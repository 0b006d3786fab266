"""With several processes it is tested by tests/training/test_several_processes.py."""

import copy
import time

import pytest
import torch
import torch.distributed as dist
from helpers.assertions import assert_close
from helpers.contracts import draw
from torch import nn

from tmapdiff.training.batch_norm import SharedBatchNorm1d, share_batch_norm


def make_norm():
    norm = nn.BatchNorm1d(4).double()
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm


class Narrow(nn.BatchNorm1d):
    """A subclass that only has other settings."""

    def __init__(self, channels):
        super().__init__(channels, eps=0.1, momentum=0.3)


class Rectified(nn.BatchNorm1d):
    """A subclass that computes something else."""

    def forward(self, x):
        return super().forward(x).relu()


def shared_of(norm):
    model = nn.Sequential(norm)
    share_batch_norm(model)
    return model[0]


def alone(run):
    """Call a function in a process group of one process."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        return run()
    finally:
        # torch 2.6 waits for Gloo's threads while holding the GIL, and hangs if one is
        # still releasing a result.
        time.sleep(0.1)
        dist.destroy_process_group()


def test_one_process_alone_normalises_as_batch_norm_does():
    norm = make_norm()
    shared = shared_of(copy.deepcopy(norm))
    gradient = draw(9, 4, seed=1, dtype=torch.float64)

    def run(layer):
        x = draw(9, 4, dtype=torch.float64).requires_grad_()
        result = layer(x)
        return [result, *torch.autograd.grad(result, [x, *layer.parameters()], gradient)]

    for found, expected in zip(alone(lambda: run(shared)), run(norm), strict=True):
        assert_close(found, expected)
    for name, value in norm.state_dict().items():
        assert_close(shared.state_dict()[name].double(), value.double(), what=name)


@pytest.mark.parametrize(
    ("kind", "shape", "options"),
    [
        (nn.BatchNorm1d, (5, 4, 3), {}),
        (nn.BatchNorm2d, (5, 4, 3, 2), {}),
        (nn.BatchNorm3d, (5, 4, 3, 2, 2), {}),
        (nn.BatchNorm1d, (5, 4), {"affine": False}),
        (nn.BatchNorm1d, (5, 4), {"momentum": None}),
        (nn.BatchNorm1d, (5, 4), {"track_running_stats": False}),
        (Narrow, (5, 4), {}),
    ],
    ids=str,
)
def test_layers_of_own_parts_are_shared_too(kind, shape, options):
    norm = kind(4, **options).double()
    model = nn.Sequential(copy.deepcopy(norm))
    share_batch_norm(model)
    assert type(model[0]) is SharedBatchNorm1d
    first, second = (draw(*shape, seed=seed, dtype=torch.float64) for seed in (0, 1))
    for found, x in zip(alone(lambda: [model(first), model(second)]), (first, second), strict=True):
        assert_close(found, norm(x))
    assert_close(model.eval()(first), norm.eval()(first))


def test_hooks_stay_and_each_place_of_a_layer_is_shared():
    norm, calls = make_norm(), []
    norm.register_forward_hook(lambda layer, *_: calls.append(type(layer)))
    norm._compiled_call_impl = norm._call_impl  # as `compile` does; it calls the replaced layer
    model = nn.Sequential(norm, norm)
    share_batch_norm(model)
    model(draw(9, 4, dtype=torch.float64))
    assert calls == [SharedBatchNorm1d] * 2


@pytest.mark.parametrize("is_cuda", [False, True])
def test_layers_that_compute_something_else_stay_with_a_warning(monkeypatch, is_cuda):
    monkeypatch.setattr(nn.Parameter, "is_cuda", is_cuda, raising=False)
    replaced, own = make_norm(), Rectified(4)
    replaced.forward = own.forward
    computed = nn.utils.parametrizations.weight_norm(make_norm(), dim=0)
    model = nn.Sequential(own, replaced, computed, make_norm())
    with pytest.warns(UserWarning, match="Trainer: expected batch normal") as warned:
        share_batch_norm(model)
    assert list(model)[:3] == [own, replaced, computed]
    assert [str(one.message).split(", a ")[1].split(".")[0] for one in warned] == [
        "Rectified",
        "BatchNorm1d",
        "ParametrizedBatchNorm1d",
    ]
    assert type(model[3]) is (nn.SyncBatchNorm if is_cuda else SharedBatchNorm1d)


def test_layers_that_are_shared_already_stay(recwarn):
    model = nn.Sequential(make_norm())
    share_batch_norm(model)
    shared = model[0]
    share_batch_norm(model)
    assert model[0] is shared
    assert not recwarn


def test_second_gradients_are_those_of_all_batches_together(monkeypatch):
    """Simulate two processes with the same rows: sums over both are twice the own ones."""
    norm = make_norm()
    shared = shared_of(copy.deepcopy(norm))
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "all_reduce", lambda total: total.mul_(2))
    gradient, rows = draw(9, 4, seed=1, dtype=torch.float64), draw(9, 4, dtype=torch.float64)

    def second(layer, copies):
        parts = [rows.clone().requires_grad_() for _ in range(copies)]
        result = layer(torch.cat(parts))
        upper = torch.cat([gradient] * copies)
        first = torch.autograd.grad(result, parts, upper, create_graph=True)
        penalty = sum((one * (one + 1)).sum() for one in first)
        return torch.autograd.grad(penalty, parts[0])[0]

    assert_close(second(shared, 1), second(norm, 2))


def test_in_evaluation_nothing_is_shared():
    norm = make_norm().eval()
    shared = shared_of(norm)
    x = draw(3, 4, dtype=torch.float64)
    assert not shared.training
    assert torch.equal(alone(lambda: shared(x)), norm(x))


def test_a_model_keeps_its_parameters_and_their_names():
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.BatchNorm1d(4), nn.Tanh()))
    before = dict(model.named_parameters())
    state = list(model.state_dict())
    share_batch_norm(model)
    assert type(model[1][0]) is SharedBatchNorm1d
    assert list(model.state_dict()) == state
    assert all(one is before[name] for name, one in model.named_parameters())
