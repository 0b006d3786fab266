from collections.abc import Callable

import pytest
import torch
from helpers.host_sync import host_syncs, no_host_sync, on_a_device
from torch import Tensor

VALUES, INDEX = torch.arange(6.0).reshape(2, 3), torch.tensor([1, 0])

WAITING: dict[str, Callable[[Tensor, Tensor], object]] = {
    "item": lambda values, index: values.sum().item(),
    "bool": lambda values, index: bool((values > 0).any()),
    "int": lambda values, index: range(index[0]),
    "nonzero": lambda values, index: values.nonzero(),
    "where": lambda values, index: torch.where(values > 0),
    "mask": lambda values, index: values[values > 1],
    "mask of rows": lambda values, index: values[index > 0],
    "set by a mask": lambda values, index: values.__setitem__(values > 1, values[0, 0]),
    "masked_select": lambda values, index: values.masked_select(values > 1),
    "unique": lambda values, index: values.unique(),
    "unique rows": lambda values, index: values.unique(dim=0),
    "equal": lambda values, index: torch.equal(values, values),
    "repeat": lambda values, index: values.repeat_interleave(index, dim=0),
}

COPYING: dict[str, Callable[[Tensor, Tensor], object]] = {
    "cpu": lambda values, index: values.cpu(),
    "to": lambda values, index: values.to("cpu", torch.float64),
    "copy_": lambda values, index: torch.empty(2, 3).copy_(values),
    "tolist": lambda values, index: values.tolist(),
    "from a list": lambda values, index: torch.tensor([1.0, 2.0], device=values.device),
    "from the host": lambda values, index: torch.ones(2).to(values.device),
    "a number": lambda values, index: values.__setitem__((index, index), 1.0),
}

FREE: dict[str, Callable[[Tensor, Tensor], object]] = {
    "index": lambda values, index: values[index],
    "slices": lambda values, index: values[:, ::2].clone(),
    "masked_fill": lambda values, index: values.masked_fill(values > 1, 0),
    "where": lambda values, index: values.where(values > 1, 0),
    "gather": lambda values, index: values.gather(1, index[:, None]),
    "scatter": lambda values, index: values.scatter(1, index[:, None], -1.0),
    "slice": lambda values, index: values.clone()[:, :2].fill_(0),
    "sort": lambda values, index: values.sort(dim=1),
    "dtype": lambda values, index: values.double(),
    "new": lambda values, index: torch.arange(3, device=values.device) + values.new_zeros(3),
    "repeat": lambda values, index: values.repeat_interleave(index, dim=0, output_size=1),
    "later": lambda values, index: values.to("cpu", non_blocking=True),
}


@pytest.mark.parametrize("name", [*WAITING, *COPYING])
def test_what_waits_is_found(name):
    waits = pytest.raises(pytest.fail.Exception, match="waits for the device")
    if name in WAITING:
        with waits, no_host_sync():
            WAITING[name](VALUES.clone(), INDEX)
    with on_a_device() as put:
        values, index = put([VALUES, INDEX])
        with waits, no_host_sync():
            {**WAITING, **COPYING}[name](values, index)


@pytest.mark.parametrize("name", FREE)
def test_what_does_not_wait_passes(name):
    with host_syncs() as found:
        FREE[name](VALUES.clone(), INDEX)
    assert found == []
    with on_a_device() as put:
        values, index = put([VALUES, INDEX])
        with no_host_sync():
            FREE[name](values, index)
