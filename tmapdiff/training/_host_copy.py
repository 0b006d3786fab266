"""Asynchronous copies from a device to the host."""

import torch
from torch import Tensor


class HostCopy:
    """Numbers that are copied from a device to the host, which waits only when it reads them."""

    def __init__(self, numbers: Tensor) -> None:
        self.numbers, self.arrived = numbers.detach().flatten(), None
        if numbers.is_cuda:
            here = torch.empty_like(self.numbers, device="cpu", pin_memory=True)
            self.numbers = here.copy_(self.numbers, non_blocking=True)
            self.arrived = torch.cuda.Event()
            self.arrived.record(torch.cuda.current_stream(numbers.device))

    def read(self) -> list[float]:
        if self.arrived is not None:
            self.arrived.synchronize()
        numbers: list[float] = self.numbers.tolist()
        return numbers
