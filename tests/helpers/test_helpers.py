"""The comparisons themselves: each fails on wrong answers."""

from typing import Any

import pytest
import torch
from helpers.assertions import (
    assert_close,
    assert_nonzero_exactly,
    assert_same,
    assert_zero,
    refuses,
)
from helpers.contracts import (
    MaskArgumentContract,
    draw,
    evaluate,
    randomize_,
    triangle,
)
from helpers.tolerances import TOLERANCES
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from tmapdiff.errors import ArgumentError, ShapeError

Failed = pytest.fail.Exception


def test_tolerances_are_far_below_five_percent() -> None:
    for tolerance in TOLERANCES.values():
        assert 0 < tolerance.typical <= tolerance.worst < 0.045


@pytest.mark.parametrize("dtype", list(TOLERANCES))
class TestAssertClose:
    def test_accepts_rounding(self, dtype: torch.dtype) -> None:
        expected = draw(3, 4, 5, dtype=torch.float64)
        assert_close(expected.to(dtype), expected)

    @pytest.mark.parametrize(
        "spoil",
        [
            lambda x: x * 1.05,
            lambda x: -x,
            lambda x: x + 0.1,
            lambda x: torch.zeros_like(x),
            lambda x: x.mT.reshape(x.shape),
            lambda x: x.masked_fill(x == x.max(), 0),
            lambda x: x.masked_fill(x == x.max(), torch.nan),
            lambda x: x.masked_fill(x == x.max(), torch.inf),
            lambda x: x[:1],
            lambda x: x[..., None],
            lambda x: x[0].expand_as(x),
        ],
    )
    def test_fails_on_wrong_answers(self, dtype: torch.dtype, spoil: object) -> None:
        expected = draw(3, 4, 5, dtype=torch.float64).to(dtype)
        with pytest.raises(Failed):
            assert_close(spoil(expected), expected)  # type: ignore[operator]

    def test_zeros_have_to_be_zeros(self, dtype: torch.dtype) -> None:
        expected = torch.zeros(3, 4, dtype=dtype)
        assert_close(expected, expected.clone())
        with pytest.raises(Failed):
            assert_close(expected + 1e-4, expected)


def test_assert_close_fails_when_nan_is_expected() -> None:
    with pytest.raises(Failed, match="not finite"):
        assert_close(torch.tensor([torch.nan]), torch.tensor([torch.nan]))


@pytest.mark.parametrize(
    "wrong",
    [
        torch.tensor([1.0, torch.nextafter(torch.tensor(2.0), torch.tensor(3.0))]),
        torch.tensor([1.0, torch.nan]),
        torch.tensor([1.0, 2.0], dtype=torch.float64),
        torch.tensor([[1.0, 2.0]]),
        torch.tensor([1.0]),
    ],
)
def test_assert_same_fails(wrong: Tensor) -> None:
    right = torch.tensor([1.0, 2.0])
    assert_same(right, right.clone())
    with pytest.raises(Failed):
        assert_same(wrong, right)


def test_assert_same_takes_nan_for_wrong_even_where_it_is_expected() -> None:
    with pytest.raises(Failed, match="differ"):
        assert_same(torch.tensor([torch.nan]), torch.tensor([torch.nan]))


@pytest.mark.parametrize("value", [1e-30, -1.0, torch.nan])
def test_assert_zero_fails(value: float) -> None:
    where = torch.tensor([True, False])
    assert_zero(torch.tensor([[0.0, 5.0]]), where)
    with pytest.raises(Failed, match="not 0"):
        assert_zero(torch.tensor([[value, 5.0]]), where)


def test_assert_zero_fails_when_it_compares_nothing() -> None:
    with pytest.raises(Failed, match="nothing"):
        assert_zero(torch.zeros(2), torch.tensor([False, False]))


@pytest.mark.parametrize("wrong", [[0.0, 0.0], [1.0, 1e-30], [torch.nan, 0.0], [[1.0, 0.0]]])
def test_assert_nonzero_exactly_fails(wrong: list[float]) -> None:
    where = torch.tensor([True, False])
    assert_nonzero_exactly(torch.tensor([1.0, 0.0]), where)
    with pytest.raises(Failed):
        assert_nonzero_exactly(torch.tensor(wrong), where)


class TestRefuses:
    def test_accepts_the_kind_and_its_children(self) -> None:
        with refuses(ArgumentError, "got (2, 3)."):
            raise ShapeError("who: expected (1,), got (2, 3).")

    def test_fails_without_an_error(self) -> None:
        with pytest.raises(Failed, match="DID NOT RAISE"), refuses(ArgumentError, "got"):
            pass

    def test_fails_on_another_text(self) -> None:
        with pytest.raises(AssertionError), refuses(ArgumentError, "got 3"):
            raise ArgumentError("got 4")

    def test_fails_when_one_of_several_texts_is_missing(self) -> None:
        with refuses(ArgumentError, "got", "3"):
            raise ArgumentError("got 3")
        with pytest.raises(Failed, match="does not say 4"), refuses(ArgumentError, "got", "4"):
            raise ArgumentError("got 3")

    def test_fails_on_errors_that_are_not_ours(self) -> None:
        with pytest.raises(Failed, match="not a TmapdiffError"), refuses(ValueError, "got"):
            raise ValueError("got 3")

    def test_fails_on_two_lines(self) -> None:
        with pytest.raises(Failed, match="more than one line"), refuses(ArgumentError, "got"):
            raise ArgumentError("got 3\nhint")


def test_randomize_overwrites_everything_and_repeats() -> None:
    def make() -> nn.Module:
        return nn.Sequential(nn.Embedding(4, 3, padding_idx=0), nn.Linear(3, 3), nn.BatchNorm1d(3))

    module, twin, other = randomize_(make()), randomize_(make()), randomize_(make(), seed=1)
    for (name, one), two, three in zip(
        module.state_dict().items(),
        twin.state_dict().values(),
        other.state_dict().values(),
        strict=True,
    ):
        assert_same(one, two, name)
        if name != "2.num_batches_tracked":
            assert bool((one != three).any()), name
            assert len(one.unique()) > 1, name
    assert_zero(module[0].weight, torch.tensor([True, False, False, False])[:, None])


# The contract finds what is wrong with these layers.


class Good(nn.Module):
    """Weights each channel, and adds the mean of the valid cells."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        if x.dim() != 4:
            raise ShapeError(f"Good: expected 4 axes, got {x.dim()}.")
        if mask is None:
            mask = torch.ones(x.shape[-2:], dtype=torch.bool)
        invalid = ~mask.unsqueeze(-3)
        x = x.masked_fill(invalid, 0)
        mean = x.sum((-2, -1), keepdim=True) / (~invalid).sum((-2, -1), keepdim=True).clamp(min=1)
        return ((x + mean) * self.weight[:, None, None]).masked_fill(invalid, 0)


class GoodContract(MaskArgumentContract):
    kind: type[nn.Module] = Good

    def make(self) -> nn.Module:
        return self.kind()

    def inputs(self, batch: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
        return {"x": draw(batch, 2, 4, 3, dtype=dtype), "mask": triangle(4, 3)}

    def expected_shapes(self, batch: int) -> list[tuple[int, ...]]:
        return [(batch, 2, 4, 3)]

    def refused(self) -> list[tuple[dict[str, Tensor], type[Exception], str]]:
        return [({"x": draw(2, 4, 3)}, ShapeError, "Good: expected 4 axes, got 3.")]

    def expected_repr(self) -> str:
        return "("

    def valid_inputs(self) -> dict[str, Tensor]:
        return {"x": triangle(4, 3)}

    def valid_outputs(self) -> list[Tensor]:
        return [triangle(4, 3)]


class TestGood(GoodContract):
    pass


class ForgetsMask(Good):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return super().forward(x, None)


class MultipliesByMask(Good):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return super().forward(x, None) * (1 if mask is None else mask.unsqueeze(-3))


class LeaksThroughMean(Good):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        everywhere = super().forward(x, None)
        return everywhere if mask is None else everywhere.masked_fill(~mask.unsqueeze(-3), 0)


class MixesSamples(Good):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return super().forward(x + 0.1 * x.nan_to_num().sum(0), mask)


class HasDeadWeight(Good):
    def __init__(self) -> None:
        super().__init__()
        self.dead = nn.Parameter(torch.zeros(3))


class IsRandom(Good):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return super().forward(x, mask) * (1 + 0.1 * torch.rand(()))


class WritesIntoInput(Good):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = x if x.requires_grad else x.mul_(2)
        return super().forward(x, mask)


class HasWrongGradient(Good):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        y = super().forward(x, mask)
        return y + 0.1 * (y.detach() - y)


class _OneGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return 2 * ctx.saved_tensors[0] * gradient


class HasOneGradient(Good):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return super().forward(_OneGradient.apply(x), mask)


class _ConstantGradient(_OneGradient):
    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return 2 * ctx.saved_tensors[0].detach() * gradient


class HasConstantGradient(Good):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return super().forward(_ConstantGradient.apply(x), mask)


class ForgetsWeight(Good):
    def state_dict(self, *args: object, **kwargs: object) -> dict[str, Tensor]:
        return {}


class AlwaysFloat32(Good):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return super().forward(x, mask).float()


class ReadsMemory(Good):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        laid = torch.as_strided(x, x.shape, torch.empty(x.shape).stride())
        return super().forward(laid, mask)


class BuildsOnCpu(Good):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2, device="cpu"))


class CannotPickle(Good):
    def __init__(self) -> None:
        super().__init__()
        self.function = lambda x: x


class Imprecise(Good):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        y = super().forward(x, mask)
        return y * 1.05 if y.dtype in (torch.float16, torch.bfloat16) else y


class BreaksGraph(Good):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return super().forward(x, mask) * float((x.shape[0] and x.sum() < 1e9) or 1)


class IgnoresSecondMask(Good):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return super().forward(x, mask[:1] if mask is not None and mask.dim() == 3 else mask)


class AcceptsAnything(Good):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return super().forward(x if x.dim() == 4 else x.unsqueeze(1).expand(-1, 2, -1, -1), mask)


class WideInAutocast(Good):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        y = super().forward(x, mask)
        return y * 1.05 if torch.is_autocast_enabled("cpu") else y


class HasNoRepr(Good):
    def __repr__(self) -> str:
        return "layer"


class IgnoresMaskOfBatch(Good):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return super().forward(x, mask if mask is not None and mask.dim() == 2 else None)


class NeedsMask(Good):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return super().forward(x, triangle(4, 3) if mask is None else mask)


Contract = MaskArgumentContract

FINDS = [
    (ForgetsMask, Contract.test_invalid_cells_are_zero_in_outputs_and_gradients, ()),
    (ForgetsMask, Contract.test_samples_without_valid_cells_give_zeros, ()),
    (MultipliesByMask, Contract.test_invalid_inputs_do_not_matter, (torch.nan,)),
    (MultipliesByMask, Contract.test_gradients_of_invalid_outputs_do_not_matter, ()),
    (LeaksThroughMean, Contract.test_invalid_inputs_do_not_matter, (1e30,)),
    (MixesSamples, Contract.test_samples_do_not_influence_each_other, ()),
    (HasDeadWeight, Contract.test_all_parameters_get_gradient, ()),
    (IsRandom, Contract.test_evaluation_is_deterministic, ()),
    (WritesIntoInput, Contract.test_inputs_are_not_modified, ()),
    (HasWrongGradient, Contract.test_gradients_are_those_of_finite_differences, ()),
    (HasOneGradient, Contract.test_second_gradients_are_those_of_finite_differences, ()),
    (HasConstantGradient, Contract.test_second_gradients_are_those_of_finite_differences, ()),
    (HasOneGradient, Contract.test_torch_func_grad_equals_autograd, ()),
    (HasOneGradient, Contract.test_torch_func_jvp_is_along_the_gradient, ()),
    (HasOneGradient, Contract.test_torch_func_vmap_equals_a_loop, ()),
    (ForgetsWeight, Contract.test_state_dict_round_trip, ()),
    (AlwaysFloat32, Contract.test_shape_and_dtype, (3, torch.float64)),
    (AlwaysFloat32, Contract.test_half_precision_is_close, (torch.bfloat16,)),
    (Imprecise, Contract.test_half_precision_is_close, (torch.float16,)),
    (ReadsMemory, Contract.test_memory_layout_does_not_matter, ("strided",)),
    (ReadsMemory, Contract.test_memory_layout_does_not_matter, ("transposed",)),
    (ReadsMemory, Contract.test_memory_layout_does_not_matter, ("channels_last",)),
    (BuildsOnCpu, Contract.test_builds_on_meta, ()),
    (CannotPickle, Contract.test_deepcopy_and_pickle, ()),
    (BreaksGraph, Contract.test_compiled_equals_eager, ()),
    (IgnoresSecondMask, Contract.test_every_sample_has_its_own_mask, ()),
    (AcceptsAnything, Contract.test_refuses_wrong_inputs, ()),
    (WideInAutocast, Contract.test_autocast_is_close, ()),
    (HasNoRepr, Contract.test_repr, ()),
    (IgnoresMaskOfBatch, Contract.test_mask_of_a_batch_equals_one_mask, ()),
    (NeedsMask, Contract.test_no_mask_means_all_valid, ()),
]


@pytest.mark.parametrize(("kind", "test", "arguments"), FINDS)
def test_contract_finds(kind: type[nn.Module], test: object, arguments: tuple[object, ...]) -> None:
    contract = GoodContract()
    test(contract, *arguments)  # type: ignore[operator]
    contract.kind = kind
    with pytest.raises(BaseException) as caught:  # noqa: PT011
        test(contract, *arguments)  # type: ignore[operator]
    assert not isinstance(caught.value, KeyboardInterrupt)


def test_every_test_of_the_contract_is_shown_to_fail() -> None:
    shown = {test.__name__ for _, test, _ in FINDS}
    assert shown == {name for name in dir(MaskArgumentContract) if name.startswith("test_")}


def test_evaluation_names_what_it_holds() -> None:
    evaluation = evaluate(Good(), GoodContract().inputs(2))
    assert evaluation.all().keys() == {"output 0", "gradient of x", "gradient of weight"}
