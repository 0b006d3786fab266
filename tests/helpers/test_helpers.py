"""The comparisons themselves: each fails on wrong answers."""

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.assertions import (
    TOLERANCES,
    assert_close,
    assert_nonzero_exactly,
    assert_same,
    assert_zero,
    refuses,
)
from helpers.contracts import MaskArgumentContract, draw, evaluate, randomize_, triangle
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from tmapdiff.errors import ArgumentError, ShapeError


def fails(compare: Callable[..., None], *arguments: Any, match: str | None = None) -> None:
    with pytest.raises(pytest.fail.Exception, match=match):
        compare(*arguments)


def test_tolerances_are_far_below_five_percent() -> None:
    for tolerance in TOLERANCES.values():
        assert 0 < tolerance.typical <= tolerance.worst < 0.045


@pytest.mark.parametrize("dtype", list(TOLERANCES))
def test_assert_close_accepts_rounding_and_fails_on_wrong_answers(dtype: torch.dtype) -> None:
    exact = draw(3, 4, 5, dtype=torch.float64)
    right = exact.to(dtype)
    assert_close(right, exact)
    for wrong in (
        right * 1.05,
        -right,
        right + 0.1,
        torch.zeros_like(right),
        right.mT.reshape(right.shape),
        right.masked_fill(right == right.max(), 0),
        right.masked_fill(right == right.max(), torch.nan),
        right.masked_fill(right == right.max(), torch.inf),
        right[:1],
        right[..., None],
        right[0].expand_as(right),
    ):
        fails(assert_close, wrong, right)
    # Zeros have to be zeros.
    zeros = torch.zeros(3, 4, dtype=dtype)
    assert_close(zeros, zeros.clone())
    fails(assert_close, zeros + 1e-4, zeros)


def test_assert_same_fails() -> None:
    right = torch.tensor([1.0, 2.0])
    assert_same(right, right.clone())
    for wrong in (
        torch.tensor([1.0, torch.nextafter(torch.tensor(2.0), torch.tensor(3.0))]),
        torch.tensor([1.0, torch.nan]),
        right.double(),
        right[None],
        right[:1],
    ):
        fails(assert_same, wrong, right)


def test_nan_is_wrong_even_where_it_is_expected() -> None:
    nan = torch.tensor([torch.nan])
    fails(assert_close, nan, nan, match="not finite")
    fails(assert_same, nan, nan, match="differ")


def test_comparisons_with_zero_fail() -> None:
    where = torch.tensor([True, False])
    assert_zero(torch.tensor([[0.0, 5.0]]), where)
    for value in (1e-30, -1.0, torch.nan):
        fails(assert_zero, torch.tensor([[value, 5.0]]), where, match="not 0")
    fails(assert_zero, torch.zeros(2), torch.tensor([False, False]), match="nothing")
    assert_nonzero_exactly(torch.tensor([1.0, 0.0]), where)
    for wrong in ([0.0, 0.0], [1.0, 1e-30], [torch.nan, 0.0], [[1.0, 0.0]]):
        fails(assert_nonzero_exactly, torch.tensor(wrong), where)


@pytest.mark.parametrize(
    ("error", "texts", "failure"),
    [
        (None, ("got",), "DID NOT RAISE"),
        (ArgumentError("got 4"), ("got 3",), "Regex pattern did not match"),
        (ArgumentError("got 3"), ("got", "4"), "does not say 4"),
        (ValueError("got 3"), ("got",), "not a TmapdiffError"),
        (ArgumentError("got 3\nhint"), ("got",), "more than one line"),
    ],
)
def test_refuses_fails(error: Exception | None, texts: tuple[str, ...], failure: str) -> None:
    def refuse() -> None:
        with refuses(type(error) if error else ArgumentError, *texts):
            if error:
                raise error

    with pytest.raises((AssertionError, pytest.fail.Exception), match=failure):
        refuse()


def test_refuses_accepts_the_kind_and_its_children() -> None:
    with refuses(ArgumentError, "got", "(2, 3)."):
        raise ShapeError("who: expected (1,), got (2, 3).")


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

    def refused(self) -> list[tuple[dict[str, Tensor], type[Exception], str]]:
        return [({"x": draw(2, 4, 3)}, ShapeError, "Good: expected 4 axes, got 3.")]

    def expected_repr(self) -> str:
        return "("


class TestGood(GoodContract):
    pass


class HasDeadWeight(Good):
    def __init__(self) -> None:
        super().__init__()
        self.dead = nn.Parameter(torch.zeros(3))


class BuildsOnCpu(Good):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2, device="cpu"))


class CannotPickle(Good):
    def __init__(self) -> None:
        super().__init__()
        self.function = lambda x: x


class _OneGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return 2 * ctx.saved_tensors[0] * gradient


class _ConstantGradient(_OneGradient):
    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return 2 * ctx.saved_tensors[0].detach() * gradient


def bad(name: str, **methods: Callable[..., Any]) -> type[nn.Module]:
    """A `Good` with other methods; `forward` is given the good one first."""
    if (forward := methods.pop("forward", None)) is not None:

        def changed(self: Good, x: Tensor, mask: Tensor | None = None) -> Tensor:
            return forward(functools.partial(Good.forward, self), x, mask)

        methods["forward"] = changed
    return type(name, (Good,), methods)


def over_all(result: Tensor, mask: Tensor | None, otherwise: float) -> Tensor:
    return result if mask is None else result.masked_fill(~mask.unsqueeze(-3), otherwise)


def is_half(x: Tensor) -> bool:
    return x.dtype in (torch.float16, torch.bfloat16)


Forward = Callable[[Callable[..., Tensor], Tensor, Tensor | None], Tensor]
# Each named for what it does wrong; where it is right is `good`.
FORWARDS: dict[str, Forward] = {
    "ForgetsMask": lambda good, x, mask: good(x),
    "MultipliesByMask": lambda good, x, mask: (
        good(x) * (1 if mask is None else mask[..., None, :, :])
    ),
    "LeaksThroughMean": lambda good, x, mask: over_all(good(x), mask, 0),
    "MixesSamples": lambda good, x, mask: good(x + 0.1 * x.nan_to_num().sum(0), mask),
    "IsRandom": lambda good, x, mask: good(x, mask) * (1 + 0.1 * torch.rand(())),
    "WritesIntoInput": lambda good, x, mask: good(x if x.requires_grad else x.mul_(2), mask),
    "HasWrongGradient": lambda good, x, mask: 0.9 * (y := good(x, mask)) + 0.1 * y.detach(),
    "HasOneGradient": lambda good, x, mask: good(_OneGradient.apply(x), mask),
    "HasConstantGradient": lambda good, x, mask: good(_ConstantGradient.apply(x), mask),
    "AlwaysFloat32": lambda good, x, mask: good(x, mask).float(),
    "ReadsMemory": lambda good, x, mask: good(
        torch.as_strided(x, x.shape, torch.empty(x.shape).stride()), mask
    ),
    "Imprecise": lambda good, x, mask: good(x, mask) * (1.05 if is_half(x) else 1),
    "BreaksGraph": lambda good, x, mask: good(x, mask) * float((len(x) and x.sum() < 1e9) or 1),
    "IgnoresSecondMask": lambda good, x, mask: good(
        x, mask[:1] if mask is not None and mask.dim() == 3 else mask
    ),
    "AcceptsAnything": lambda good, x, mask: good(
        x if x.dim() == 4 else x.unsqueeze(1).expand(-1, 2, -1, -1), mask
    ),
    "WideInAutocast": lambda good, x, mask: (
        good(x, mask) * (1.05 if torch.is_autocast_enabled("cpu") else 1)
    ),
    "IgnoresMaskOfBatch": lambda good, x, mask: good(
        x, mask if mask is not None and mask.dim() == 2 else None
    ),
    "NeedsMask": lambda good, x, mask: good(x, triangle(4, 3) if mask is None else mask),
}
BAD = {name: bad(name, forward=forward) for name, forward in FORWARDS.items()}
BAD |= {kind.__name__: kind for kind in (HasDeadWeight, BuildsOnCpu, CannotPickle)}
BAD["ForgetsWeight"] = bad("ForgetsWeight", state_dict=lambda self, *args, **kwargs: {})
BAD["HasNoRepr"] = bad("HasNoRepr", __repr__=lambda self: "layer")

Contract = MaskArgumentContract

FINDS = [
    ("ForgetsMask", Contract.test_invalid_cells_are_zero_in_outputs_and_gradients, ()),
    ("ForgetsMask", Contract.test_samples_without_valid_cells_give_zeros, ()),
    ("MultipliesByMask", Contract.test_invalid_inputs_do_not_matter, (torch.nan,)),
    ("MultipliesByMask", Contract.test_gradients_of_invalid_outputs_do_not_matter, ()),
    ("LeaksThroughMean", Contract.test_invalid_inputs_do_not_matter, (1e30,)),
    ("MixesSamples", Contract.test_samples_do_not_influence_each_other, ()),
    ("HasDeadWeight", Contract.test_all_parameters_get_gradient, ()),
    ("IsRandom", Contract.test_evaluation_is_deterministic, ()),
    ("WritesIntoInput", Contract.test_inputs_are_not_modified, ()),
    ("HasWrongGradient", Contract.test_gradients_are_those_of_finite_differences, ()),
    ("HasOneGradient", Contract.test_second_gradients_are_those_of_finite_differences, ()),
    ("HasConstantGradient", Contract.test_second_gradients_are_those_of_finite_differences, ()),
    ("HasOneGradient", Contract.test_torch_func_grad_equals_autograd, ()),
    ("HasOneGradient", Contract.test_torch_func_jvp_is_along_the_gradient, ()),
    ("HasOneGradient", Contract.test_torch_func_vmap_equals_a_loop, ()),
    ("ForgetsWeight", Contract.test_state_dict_round_trip, ()),
    ("AlwaysFloat32", Contract.test_shape_and_dtype, (3, torch.float64)),
    ("AlwaysFloat32", Contract.test_half_precision_is_close, (torch.bfloat16,)),
    ("Imprecise", Contract.test_half_precision_is_close, (torch.float16,)),
    ("ReadsMemory", Contract.test_memory_layout_does_not_matter, ("strided",)),
    ("ReadsMemory", Contract.test_memory_layout_does_not_matter, ("transposed",)),
    ("ReadsMemory", Contract.test_memory_layout_does_not_matter, ("channels_last",)),
    ("BuildsOnCpu", Contract.test_builds_on_meta, ()),
    ("CannotPickle", Contract.test_deepcopy_and_pickle, ()),
    ("BreaksGraph", Contract.test_compiled_equals_eager, ()),
    ("IgnoresSecondMask", Contract.test_every_sample_has_its_own_mask, ()),
    ("AcceptsAnything", Contract.test_refuses_wrong_inputs, ()),
    ("WideInAutocast", Contract.test_autocast_is_close, ()),
    ("HasNoRepr", Contract.test_repr, ()),
    ("IgnoresMaskOfBatch", Contract.test_mask_of_a_batch_equals_one_mask, ()),
    ("NeedsMask", Contract.test_no_mask_means_all_valid, ()),
]


def found_by(name: str, test: Any, arguments: tuple[Any, ...]) -> Any:
    marks = [one for one in getattr(test, "pytestmark", []) if one.name == "compile"]
    return pytest.param(BAD[name], test, arguments, marks=marks, id=f"{name}-{test.__name__}")


@pytest.mark.parametrize(("kind", "test", "arguments"), [found_by(*one) for one in FINDS])
def test_contract_finds(kind: type[nn.Module], test: Any, arguments: tuple[Any, ...]) -> None:
    contract = GoodContract()
    test(contract, *arguments)
    contract.kind = kind
    with pytest.raises(BaseException) as caught:  # noqa: PT011
        test(contract, *arguments)
    assert not isinstance(caught.value, KeyboardInterrupt)


def test_every_test_of_the_contract_is_shown_to_fail() -> None:
    shown = {test.__name__ for _, test, _ in FINDS}
    assert shown == {name for name in dir(MaskArgumentContract) if name.startswith("test_")}
    assert {name for name, _, _ in FINDS} == BAD.keys()


def test_evaluation_names_what_it_holds() -> None:
    evaluation = evaluate(Good(), GoodContract().inputs(2))
    assert evaluation.all().keys() == {"output 0", "gradient of x", "gradient of weight"}
