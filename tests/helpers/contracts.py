"""What every module of the library has to fulfil: tests that a module's own tests inherit.

A subclass says how to make the module and its inputs; its name starts with `Test`, so that pytest
runs the inherited tests. `ModuleContract` is for every module, `MaskedContract` for those with
invalid cells, `MaskArgumentContract` for those that are told the mask in the call.
"""

import copy
import io
import pickle
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from helpers.assertions import assert_close, assert_same, assert_zero, refuses
from torch import Tensor, nn

from tmapdiff.errors import ShapeError

Inputs = dict[str, Any]  # a tensor or a list of tensors by the name of the argument


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Standard normal values, the same for the same seed, rounded to a dtype."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def draw_like(values: Iterable[Tensor], seed: int) -> list[Tensor]:
    """Standard normal values in the shapes and dtypes of tensors."""
    return [draw(*one.shape, seed=seed + i, dtype=one.dtype) for i, one in enumerate(values)]


def inner_product(values: Iterable[Tensor], others: Iterable[Tensor]) -> Tensor:
    """The sum of the products of all numbers."""
    pairs = zip(values, others, strict=True)
    return torch.stack([(one * other).sum() for one, other in pairs]).sum()


def triangle(rows: int, columns: int) -> Tensor:
    """Cells (i, j) with i + j + 1 <= rows, written without the library."""
    return torch.tensor([[i + j + 1 <= rows for j in range(columns)] for i in range(rows)])


def randomize_(module: nn.Module, seed: int = 0) -> nn.Module:
    """Overwrite all parameters and running statistics, zero-initialised ones too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            values = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            if parameter.dim() > 1:
                values /= parameter[0].numel() ** 0.5
            else:
                values = 0.3 * values + (1 if name.endswith("weight") else 0)
            parameter.copy_(values)
        for part in module.modules():
            if isinstance(part, nn.Embedding) and part.padding_idx is not None:
                part.weight[part.padding_idx] = 0
            if isinstance(part, nn.BatchNorm1d):
                part.running_mean.normal_(0, 0.3, generator=generator)
                part.running_var.uniform_(0.5, 1.5, generator=generator)
    return module


def tensors(value: Any) -> list[Tensor]:
    """One tensor or several as a list."""
    return [value] if isinstance(value, Tensor) else list(value)


def change(inputs: Inputs, function: Any, *, floating: bool = True) -> Inputs:
    """Inputs after `function(name, tensor)` on every tensor, or on floating ones only."""

    def one(name: str, tensor: Tensor) -> Tensor:
        return function(name, tensor) if not floating or tensor.is_floating_point() else tensor

    return {
        name: one(name, value)
        if isinstance(value, Tensor)
        else [one(f"{name}[{index}]", part) for index, part in enumerate(value)]
        for name, value in inputs.items()
    }


def named_tensors(inputs: Inputs) -> dict[str, Tensor]:
    """All tensors of the inputs by name; those of lists as `name[index]`."""
    found = {}
    change(inputs, lambda name, tensor: found.setdefault(name, tensor), floating=False)
    return found


@dataclass
class Evaluation:
    """Outputs of a module, and the gradients of their sum, weighted with fixed random numbers."""

    outputs: list[Tensor]
    inputs: dict[str, Tensor]
    parameters: dict[str, Tensor]

    def all(self) -> dict[str, Tensor]:
        """Everything by name."""
        return {
            **{f"output {index}": output for index, output in enumerate(self.outputs)},
            **{f"gradient of {name}": gradient for name, gradient in self.inputs.items()},
            **{f"gradient of {name}": gradient for name, gradient in self.parameters.items()},
        }


def evaluate(
    module: nn.Module, inputs: Inputs, spoil: list[Tensor] | None = None, train: bool = False
) -> Evaluation:
    """Run a module forward and backward, on fresh leaves, in evaluation mode.

    Args:
        module: Module to run.
        inputs: Keyword arguments.
        spoil: Cells of each output whose gradient is NaN.
        train: Whether to run in training mode.
    """
    module.train(train)
    fresh = change(inputs, lambda _, tensor: tensor.detach().clone().requires_grad_())
    leaves = {name: leaf for name, leaf in named_tensors(fresh).items() if leaf.requires_grad}
    parameters = {n: p for n, p in module.named_parameters() if p.requires_grad}
    outputs = tensors(module(**fresh))
    weights = draw_like(outputs, seed=100)
    for weight, cells in zip(weights, spoil or (), strict=spoil is not None):
        weight.masked_fill_(cells, torch.nan)
    gradients: list[Tensor | None] = []
    if wanted := [*leaves.values(), *parameters.values()]:
        gradients = list(torch.autograd.grad(outputs, wanted, weights, allow_unused=True))
    filled = [
        torch.zeros_like(leaf) if gradient is None else gradient
        for leaf, gradient in zip(wanted, gradients, strict=True)
    ]
    return Evaluation(
        [output.detach() for output in outputs],
        dict(zip(leaves, filled[: len(leaves)], strict=True)),
        dict(zip(parameters, filled[len(leaves) :], strict=True)),
    )


def assert_all_close(
    actual: Any, expected: Any, dtype: torch.dtype | None = None, what: str = "result"
) -> None:
    """Fail unless one tensor, or each of several, is within the table."""
    for one, other in zip(tensors(actual), tensors(expected), strict=True):
        assert_close(one, other, dtype, what)


def assert_same_evaluation(actual: Evaluation, expected: Evaluation) -> None:
    """Fail unless all outputs and gradients are equal."""
    mine = actual.all()
    assert mine.keys() == expected.all().keys()
    for name, value in expected.all().items():
        assert_same(mine[name], value, name)


def assert_close_evaluation(
    actual: Evaluation, expected: Evaluation, dtype: torch.dtype | None = None
) -> None:
    """Fail unless all outputs and gradients are within the table."""
    assert actual.all().keys() == expected.all().keys()
    for name, value in expected.all().items():
        assert_close(actual.all()[name], value, dtype, name)


Function = Callable[..., tuple[Tensor, ...]]


def as_function(module: nn.Module, inputs: Inputs) -> tuple[Function, list[Tensor]]:
    """A module as a function of all floating inputs and parameters, and these as leaves."""
    parameters = {n: p for n, p in module.named_parameters() if p.requires_grad}
    leaves = {n: t for n, t in named_tensors(inputs).items() if t.is_floating_point()}

    def call(*values: Tensor) -> tuple[Tensor, ...]:
        given = dict(zip([*leaves, *parameters], values, strict=True))
        changed = change(inputs, lambda name, _: given[name])
        weights = {name: given[name] for name in parameters}
        return tuple(tensors(torch.func.functional_call(module, weights, (), changed)))

    values = [t.detach().clone().requires_grad_() for t in (leaves | parameters).values()]
    assert values
    return call, values


def weighted_sum(function: Function) -> Callable[..., Tensor]:
    """The sum of what a function returns, weighted with fixed random numbers."""

    def weighted(*values: Tensor) -> Tensor:
        outputs = function(*values)
        return inner_product(outputs, draw_like(outputs, seed=100))

    return weighted


def assert_second_gradients(
    function: Function, values: Sequence[Tensor], with_incoming: bool = False
) -> None:
    """Fail unless gradients of gradients are those of finite differences of the gradients.

    Args:
        function: What is differentiated.
        values: Its inputs, leaves that require gradients.
        with_incoming: Whether the gradient of the result is a variable, too. Where a penalty on
            gradients is trained it is a constant: what a gradient depends on is then known from
            what was saved alone.
    """
    with torch.no_grad():
        incoming = draw_like(function(*values), seed=100)
    for one in incoming:
        one.requires_grad_(with_incoming)
    variables = [*values, *incoming] if with_incoming else [*values]

    def penalty(*at: Tensor, create_graph: bool = False) -> Tensor:
        own = list(at[: len(values)])
        upper = at[len(values) :] or incoming
        gradients = torch.autograd.grad(
            function(*own), own, upper, create_graph=create_graph, materialize_grads=True
        )
        return inner_product(gradients, draw_like(own, seed=200))

    found: Sequence[Tensor] = [torch.zeros_like(one) for one in variables]
    if (total := penalty(*variables, create_graph=True)).requires_grad:  # or else it is linear
        found = torch.autograd.grad(total, variables, materialize_grads=True)
    along = draw_like(variables, seed=300)

    def moved(by: float) -> Tensor:
        pairs = zip(variables, along, strict=True)
        return penalty(*((one.detach() + by * way).requires_grad_() for one, way in pairs))

    step = 1e-7  # so short that no rectifier changes sides on the way
    expected = (moved(step) - moved(-step)) / (2 * step)
    torch.testing.assert_close(inner_product(found, along), expected, rtol=1e-4, atol=1e-4)


class ModuleContract:
    """Tests of any module."""

    who: ClassVar[str] = ""  # refuses wrong inputs, if it is not the module's own class
    shared_inputs: ClassVar[set[str]] = {"mask"}  # one for all samples
    compile_backend: ClassVar[str] = "aot_eager"
    seed: ClassVar[int] = 0  # of the weights

    # What a subclass says

    def make(self) -> nn.Module:
        raise NotImplementedError

    def inputs(self, batch: int, dtype: torch.dtype = torch.float32) -> Inputs:
        raise NotImplementedError

    def expected_shapes(self, batch: int) -> list[tuple[int, ...]]:
        """By default one output, of the first input's shape."""
        first, *_ = self.inputs(batch).values()
        return [tuple(first.shape)]

    def refused(self) -> list[tuple[Any, ...]]:
        """Inputs that replace good ones of batch 2, what `who` expected, and the error's kind.

        The kind may be left out if it is ShapeError.
        """
        raise NotImplementedError

    # Help

    def ready(self, dtype: torch.dtype = torch.float32) -> nn.Module:
        """A module with random weights."""
        return randomize_(self.make(), self.seed).to(dtype).eval()

    def function(self) -> tuple[Function, list[Tensor]]:
        """A ready module in float64 as a function of its inputs and weights, and these."""
        return as_function(self.ready(torch.float64), self.inputs(2, torch.float64))

    def samples(self, inputs: Inputs, index: Tensor | slice) -> Inputs:
        """Inputs of some samples."""

        def pick(name: str, tensor: Tensor) -> Tensor:
            return tensor if name in self.shared_inputs else tensor[index]

        return change(inputs, pick, floating=False)

    # Tests

    @pytest.mark.parametrize(
        ("batch", "dtype"), [(0, torch.float32), (1, torch.float32), (3, torch.float64)]
    )
    def test_shape_and_dtype(self, batch: int, dtype: torch.dtype) -> None:
        evaluation = evaluate(self.ready(dtype), self.inputs(batch, dtype))
        assert [tuple(one.shape) for one in evaluation.outputs] == self.expected_shapes(batch)
        for name, value in evaluation.all().items():
            assert value.dtype == dtype, name
            assert bool(value.isfinite().all()), name

    def test_samples_do_not_influence_each_other(self) -> None:
        module, inputs = self.ready(), self.inputs(3)
        outputs = tensors(module(**inputs))
        for order in ([2, 0, 1], [1], [0, 2]):
            picked = module(**self.samples(inputs, torch.tensor(order)))
            assert_all_close(picked, [one[order] for one in outputs], what=f"samples {order}")

    @pytest.mark.parametrize("layout", ["strided", "transposed", "channels_last", "expanded"])
    def test_memory_layout_does_not_matter(self, layout: str) -> None:
        def lay(_: str, tensor: Tensor) -> Tensor:
            if layout == "strided":
                return torch.stack([tensor, torch.full_like(tensor, torch.nan)], dim=-1)[..., 0]
            if layout == "transposed" and tensor.dim() > 1:
                return tensor.mT.contiguous().mT
            if layout == "channels_last" and tensor.dim() == 4:
                return tensor.contiguous(memory_format=torch.channels_last)
            if layout == "expanded":
                return tensor[:1].expand_as(tensor)
            return tensor

        module, inputs = self.ready(), self.inputs(3)
        laid = change(inputs, lay)
        expected = module(**change(laid, lambda _, tensor: tensor.contiguous()))
        assert_all_close(module(**laid), expected, what=layout)

    def test_evaluation_is_deterministic(self) -> None:
        module, inputs = self.ready(), self.inputs(3)
        assert_same_evaluation(evaluate(module, inputs), evaluate(module, inputs))

    def test_all_parameters_get_gradient(self) -> None:
        for train in (False, True):
            evaluation = evaluate(self.ready(), self.inputs(3), train=train)
            dead = [n for n, g in evaluation.parameters.items() if not bool((g != 0).any())]
            assert dead == []

    def test_gradients_are_those_of_finite_differences(self) -> None:
        call, values = self.function()
        torch.autograd.gradcheck(call, values, fast_mode=True)

    def test_second_gradients_are_those_of_finite_differences(self) -> None:
        call, values = self.function()
        assert_second_gradients(call, values)
        assert_second_gradients(call, values, with_incoming=True)

    def test_torch_func_grad_equals_autograd(self) -> None:
        call, values = self.function()
        weighted = weighted_sum(call)
        places = tuple(range(len(values)))
        found = torch.func.grad(weighted, argnums=places)(*(one.detach() for one in values))
        expected = torch.autograd.grad(weighted(*values), values, materialize_grads=True)
        assert_all_close(found, expected)

    def test_torch_func_jvp_is_along_the_gradient(self) -> None:
        call, values = self.function()
        weighted = weighted_sum(call)
        along = tuple(draw_like(values, seed=200))
        _, found = torch.func.jvp(weighted, tuple(one.detach() for one in values), along)
        gradients = torch.autograd.grad(weighted(*values), values, materialize_grads=True)
        assert_close(found, inner_product(gradients, along))

    def test_torch_func_vmap_equals_a_loop(self) -> None:
        call, values = self.function()
        with torch.no_grad():
            stacked = [torch.stack([one, 0.5 * one, one.flip(0)]) for one in values]
            found = torch.func.vmap(call)(*stacked)
            for row in range(3):
                expected = call(*(one[row] for one in stacked))
                assert_all_close([one[row] for one in found], expected)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision_is_close(self, dtype: torch.dtype) -> None:
        half = self.ready(dtype)
        inputs = self.inputs(3, dtype)
        exact = evaluate(
            copy.deepcopy(half).double(), change(inputs, lambda _, tensor: tensor.double())
        )
        evaluation = evaluate(half, inputs)
        assert {one.dtype for one in evaluation.outputs} == {dtype}
        assert_all_close(evaluation.outputs, exact.outputs, dtype)
        for name, gradient in evaluation.all().items():
            assert bool(gradient.isfinite().all()), name

    def test_autocast_is_close(self) -> None:
        module, inputs = self.ready(), self.inputs(3)
        exact = evaluate(module, inputs)
        with torch.autocast("cpu", torch.bfloat16):
            evaluation = evaluate(module, inputs)
        assert_all_close(evaluation.outputs, exact.outputs, torch.bfloat16)
        for name, gradient in (evaluation.inputs | evaluation.parameters).items():
            assert gradient.dtype == torch.float32, name
            assert bool(gradient.isfinite().all()), name

    def test_state_dict_round_trip(self) -> None:
        module, other = self.ready(), randomize_(self.make(), self.seed + 1).eval()
        inputs = self.inputs(2)
        if module.state_dict():
            pairs = zip(tensors(module(**inputs)), tensors(other(**inputs)), strict=True)
            assert any(bool((one != two).any()) for one, two in pairs)
        file = io.BytesIO()
        torch.save(module.state_dict(), file)
        file.seek(0)
        other.load_state_dict(torch.load(file, weights_only=True), strict=True)
        assert_same_evaluation(evaluate(other, inputs), evaluate(module, inputs))

    def test_builds_on_meta(self) -> None:
        with torch.device("meta"):
            empty = self.make()
        module = self.make()
        assert [(n, p.shape, p.requires_grad) for n, p in empty.named_parameters()] == [
            (n, p.shape, p.requires_grad) for n, p in module.named_parameters()
        ]
        assert list(empty.state_dict()) == list(module.state_dict())
        assert all(one.is_meta for one in empty.state_dict().values())

    def test_deepcopy_and_pickle(self) -> None:
        module, inputs = self.ready(), self.inputs(2)
        expected = evaluate(module, inputs)
        for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
            assert_same_evaluation(evaluate(twin, inputs), expected)
            pairs = zip(twin.parameters(), module.parameters(), strict=True)
            assert all(one.data_ptr() != two.data_ptr() for one, two in pairs)

    def test_inputs_are_not_modified(self) -> None:
        inputs = self.inputs(2)
        before = {n: t.clone() for n, t in named_tensors(inputs).items()}
        versions = {n: t._version for n, t in named_tensors(inputs).items()}
        for train in (False, True):
            self.ready().train(train)(**inputs)
        for name, tensor in named_tensors(inputs).items():
            assert_same(tensor, before[name], name)
            assert tensor._version == versions[name], name

    def test_refuses_wrong_inputs(self) -> None:
        module, inputs = self.ready(), self.inputs(2)
        cases = self.refused()
        assert cases
        for changes, text, *kind in cases:
            who = self.who or type(module).__name__
            whole = text if ": expected " in text else f"{who}: expected {text}"
            with refuses(kind[0] if kind else ShapeError, whole):
                module(**{**inputs, **changes})

    @pytest.mark.compile
    def test_compiled_equals_eager(self) -> None:
        module, inputs = self.ready(), self.inputs(2)
        expected = evaluate(module, inputs)
        torch._dynamo.reset()
        module.compile(backend=self.compile_backend, fullgraph=True)
        assert_close_evaluation(evaluate(module, inputs), expected, torch.float32)


class MaskedContract(ModuleContract):
    """Tests of modules with invalid cells."""

    # What a subclass says

    def valid_inputs(self) -> dict[str, Tensor]:
        """Valid cells of each input that has invalid ones, by name, to be broadcast."""
        return {}

    def valid_outputs(self) -> list[Tensor]:
        """Valid cells of each output, to be broadcast."""
        raise NotImplementedError

    # Tests

    @pytest.mark.parametrize("value", [torch.nan, 1e30])
    def test_invalid_inputs_do_not_matter(self, value: float) -> None:
        def spoil(name: str, tensor: Tensor) -> Tensor:
            return tensor.masked_fill(~valid[name], value) if name in valid else tensor

        valid = self.valid_inputs()
        module, inputs = self.ready(), self.inputs(3)
        spoilt = change(inputs, spoil)
        assert valid.keys() <= named_tensors(inputs).keys()
        for name, cells in valid.items():
            changed = named_tensors(spoilt)[name] != named_tensors(inputs)[name]
            assert_same(changed, (~cells).expand_as(changed))
        assert_same_evaluation(evaluate(module, spoilt), evaluate(module, inputs))

    def test_invalid_cells_are_zero_in_outputs_and_gradients(self) -> None:
        evaluation = evaluate(self.ready(), self.inputs(3))
        for one, cells in zip(evaluation.outputs, self.valid_outputs(), strict=True):
            assert_zero(one, ~cells)
            assert bool((one[cells.expand_as(one)] != 0).any())
        for name, cells in self.valid_inputs().items():
            gradient = evaluation.inputs[name]
            assert_zero(gradient, ~cells, f"gradient of {name}")
            assert bool((gradient[cells.expand_as(gradient)] != 0).any())

    def test_gradients_of_invalid_outputs_do_not_matter(self) -> None:
        module, inputs = self.ready(), self.inputs(3)
        spoil = [~cells for cells in self.valid_outputs()]
        assert_same_evaluation(evaluate(module, inputs, spoil=spoil), evaluate(module, inputs))


class MaskArgumentContract(MaskedContract):
    """Tests of modules that take `mask` in the call; `inputs` holds one of shape (N_k, A)."""

    def valid_inputs(self) -> dict[str, Tensor]:
        first, *_ = inputs = self.inputs(1)
        return {first: inputs["mask"]}

    def valid_outputs(self) -> list[Tensor]:
        return [self.inputs(1)["mask"]]

    def test_mask_of_a_batch_equals_one_mask(self) -> None:
        module, inputs = self.ready(), self.inputs(3)
        batched = {**inputs, "mask": inputs["mask"].expand(3, -1, -1)}
        # Close, not same: the sums of a broadcast mask may be added in another order.
        assert_close_evaluation(evaluate(module, batched), evaluate(module, inputs))

    def test_every_sample_has_its_own_mask(self) -> None:
        module, inputs = self.ready(), self.inputs(3)
        mask = inputs["mask"]
        masks = torch.stack([mask, torch.ones_like(mask), mask & mask.flip(1)])
        outputs = tensors(module(**{**inputs, "mask": masks}))
        for row in range(3):
            alone = self.samples(inputs, slice(row, row + 1))
            expected = module(**{**alone, "mask": masks[row]})
            found = [one[row : row + 1] for one in outputs]
            assert_all_close(found, expected, what=f"sample {row}")

    def test_no_mask_means_all_valid(self) -> None:
        module, inputs = self.ready(), self.inputs(3)
        everything = {**inputs, "mask": torch.ones_like(inputs["mask"])}
        without = {name: value for name, value in inputs.items() if name != "mask"}
        assert_close_evaluation(evaluate(module, without), evaluate(module, everything))

    def test_samples_without_valid_cells_give_zeros(self) -> None:
        module, inputs = self.ready(), self.inputs(3)
        masks = inputs["mask"].expand(3, -1, -1).clone()
        masks[1] = False
        evaluation = evaluate(module, {**inputs, "mask": masks})
        for one in evaluation.outputs:
            assert_zero(one[1], torch.tensor(True))
            assert bool((one[[0, 2]] != 0).any())
        for name, gradient in evaluation.all().items():
            assert bool(gradient.isfinite().all()), name
        others = torch.tensor([0, 2])
        alone = evaluate(module, {**self.samples(inputs, others), "mask": inputs["mask"]})
        assert_all_close([one[others] for one in evaluation.outputs], alone.outputs)
