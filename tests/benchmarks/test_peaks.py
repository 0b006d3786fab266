import torch
from peaks import LiveTensors, peak_bytes

CPU = torch.device("cpu")


def test_the_peak_is_of_what_lives_at_once():
    given = torch.ones(1000)

    def one_at_a_time():
        for _ in range(10):
            given + 1

    def all_together():
        return [given + 1 for _ in range(10)]

    assert peak_bytes(one_at_a_time, CPU) == 4000
    assert peak_bytes(all_together, CPU) == 40_000


def test_views_take_nothing_and_keep_what_they_view():
    with LiveTensors() as live:
        whole = torch.ones(1000)
        part = whole[:10].view(2, 5)
        assert live.current == 4000
        del whole
        assert live.current == 4000
        del part
        assert live.current == 0
    assert live.peak == 4000


def test_what_was_there_before_does_not_count():
    given = torch.ones(1000)

    def in_place():
        given.add_(1)
        given.t()

    assert peak_bytes(in_place, CPU) == 0


def test_gradients_count():
    weight = torch.ones(1000, requires_grad=True)

    def backward():
        product = weight * 2
        product.sum().backward()

    assert peak_bytes(backward, CPU) >= 8000
    assert weight.grad is not None
