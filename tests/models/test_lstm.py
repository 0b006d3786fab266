from collections.abc import Callable

import pytest
import torch
from helpers.assertions import assert_close, assert_same
from helpers.contracts import draw
from torch import Tensor, nn

from tmapdiff.models.lstm import PaddedLSTM

LENGTHS = torch.tensor([3, 7, 1, 5])
WAYS: dict[str, Callable[[PaddedLSTM, Tensor, Tensor], Tensor]] = {
    "packed": PaddedLSTM._packed,
    "padded": PaddedLSTM._padded,
}


def make(num_layers: int = 2, dtype: torch.dtype = torch.float64) -> PaddedLSTM:
    torch.manual_seed(0)
    return PaddedLSTM(6, 4, num_layers).to(dtype)


def sentence_by_sentence(lstm: PaddedLSTM, x: Tensor) -> Tensor:
    """The definition: torch's LSTM over each sequence alone."""
    plain = nn.LSTM(6, 4, lstm.num_layers, batch_first=True, bidirectional=True).to(x.dtype)
    given = dict(lstm.named_parameters())
    states = x.new_zeros(len(x), x.shape[1], 8)
    for row, length in enumerate(LENGTHS.tolist()):
        own = torch.func.functional_call(plain, given, (x[row : row + 1, :length],))[0]
        states = states.index_put((torch.tensor(row), torch.arange(length)), own[0])
    return states


def with_gradients(
    function: Callable[[Tensor], Tensor], lstm: PaddedLSTM, x: Tensor
) -> list[Tensor]:
    """Return states, their gradients, and gradients of a penalty on these."""
    leaves = [x.clone().requires_grad_(), *lstm.parameters()]
    states = function(leaves[0])
    upper = draw(*states.shape, seed=3, dtype=states.dtype)
    first = torch.autograd.grad(states, leaves, upper, create_graph=True)
    second = torch.autograd.grad(sum(one.square().sum() for one in first), leaves)
    return [one.detach() for one in (states, *first, *second)]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_states_and_gradients_are_those_of_each_sequence_alone(
    way: str, num_layers: int, dtype: torch.dtype
) -> None:
    lstm, x = make(num_layers), draw(4, 7, 6, dtype=torch.float64)
    expected = with_gradients(lambda x: sentence_by_sentence(lstm, x), lstm, x)
    lstm = lstm.to(dtype)
    found = with_gradients(lambda x: WAYS[way](lstm, x, LENGTHS), lstm, x.to(dtype))
    for one, other in zip(found, expected, strict=True):
        assert_close(one, other, dtype)


@pytest.mark.parametrize("hidden", [4, 65])  # padded, and packed unless transformed
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_torch_func_transforms_it(hidden: int, dtype: torch.dtype) -> None:
    lstm, x = PaddedLSTM(6, hidden, 2).to(dtype), draw(4, 7, 6, dtype=dtype)
    weights = {name: one.detach() for name, one in lstm.named_parameters()}
    upper = draw(4, 7, 2 * hidden, seed=3, dtype=dtype)

    def total(weights: dict[str, Tensor], x: Tensor) -> Tensor:
        return (torch.func.functional_call(lstm, weights, (x, LENGTHS)) * upper).sum()

    leaves = [x.clone().requires_grad_(), *lstm.parameters()]
    expected = torch.autograd.grad((lstm(leaves[0], LENGTHS) * upper).sum(), leaves)
    of_weights, of_x = torch.func.grad(total, argnums=(0, 1))(weights, x)
    for one, other in zip((of_x, *of_weights.values()), expected, strict=True):
        assert_close(one, other)
    _, slope = torch.func.jvp(lambda x: total(weights, x), (x,), (x,))
    assert_close(slope, (of_x * x).sum())
    found = torch.func.vmap(lambda x: lstm(x, LENGTHS))(torch.stack([x, 2 * x]))
    for one, given in zip(found, (x, 2 * x), strict=True):
        assert_close(one, lstm(given, LENGTHS).detach())


@pytest.mark.parametrize("way", WAYS)
def test_padding_is_not_looked_at(way: str) -> None:
    lstm, x = make(dtype=torch.float32), draw(4, 7, 6)
    behind = torch.arange(7) >= LENGTHS[:, None]
    states, *gradients = with_gradients(lambda x: WAYS[way](lstm, x, LENGTHS), lstm, x)
    spoilt = x.masked_fill(behind[..., None], torch.nan)
    found = with_gradients(lambda x: WAYS[way](lstm, x, LENGTHS), lstm, spoilt)
    for one, other in zip(found, [states, *gradients], strict=True):
        assert_same(one, other)
    assert not states[behind].any()
    assert not gradients[0][behind].any()


def test_small_ones_go_over_padding_where_one_operation_can(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def goes(hidden: int = 4, dtype: torch.dtype = torch.float32) -> bool:
        lstm = PaddedLSTM(6, hidden, 1)
        return lstm._goes_over_padding(draw(2, 3, 6, dtype=dtype))

    if not torch.backends.mkldnn.is_available():
        pytest.skip("this build of torch has no oneDNN")
    assert goes()
    assert not goes(hidden=65)
    assert not goes(dtype=torch.float64)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not goes()


@pytest.mark.parametrize("hidden", [4, 65])
def test_autocast_on_a_cpu_keeps_the_precision_of_the_weights(hidden: int) -> None:
    lstm, lengths = PaddedLSTM(6, hidden, 2), torch.tensor([7, 7])  # torch packs these differently
    x = draw(2, 7, 6, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        found = lstm(x, lengths)
    assert_same(found, lstm(x.float(), lengths))


@pytest.mark.parametrize("way", WAYS)
def test_the_default_device_does_not_matter(way: str) -> None:
    lstm, x = make(dtype=torch.float32), draw(4, 7, 6)
    expected = WAYS[way](lstm, x, LENGTHS)
    with torch.device("meta"):
        found = WAYS[way](lstm, x, LENGTHS)
    assert_same(found, expected)
