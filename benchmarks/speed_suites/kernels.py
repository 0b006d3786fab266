"""Single operations, at the sizes of a preset."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from speed_cases import Candidate, Case, Ceilings, Contest, TimedCase, Work
from torch import Tensor

from speed_suites import elementwise
from speed_suites.floors import conv_floor, direct_work, spectral_work, total
from speed_suites.setting import (
    AUTO,
    Setting,
    backends,
    compiled,
    find_preset,
    first_sample,
    inference,
    map_conv_backends,
    memory_format,
)
from tmapdiff.kernels.map_conv import MapConvPlan, map_conv, plan_map_conv
from tmapdiff.kernels.map_conv.costs import (
    ConvSizes,
    best_transform,
    direct_seconds,
    spectral_seconds,
)
from tmapdiff.layers import GatedConv2dStack
from tmapdiff.presets import Preset

SUITE = "kernels"
# (batch, input and output channels, starts, durations, kernel size) of suite "choices".
SIZES = (
    (1, 1, 129, 64, 16, 17),
    (1, 32, 33, 16, 8, 5),
    (1, 32, 33, 16, 16, 17),
    (1, 64, 65, 8, 8, 5),
    (1, 64, 65, 8, 8, 9),
    (1, 64, 65, 32, 8, 5),
    (1, 128, 65, 32, 8, 5),
    (1, 128, 129, 16, 16, 17),
    (1, 128, 129, 32, 16, 9),
    (1, 256, 129, 64, 16, 5),
    (1, 256, 129, 64, 16, 9),
    (2, 64, 65, 16, 8, 5),
    (8, 128, 65, 32, 8, 5),
    (8, 128, 129, 32, 16, 9),
    (16, 64, 65, 16, 16, 7),
    (32, 1, 65, 32, 8, 5),
    (32, 1, 129, 64, 16, 17),
    (32, 32, 33, 8, 8, 5),
    (32, 64, 65, 8, 8, 5),
    (32, 64, 65, 32, 8, 3),
    (32, 64, 65, 32, 8, 5),
    (32, 128, 65, 32, 8, 5),
    (32, 128, 129, 8, 8, 3),
    (64, 32, 33, 16, 8, 5),
)


def cases(setting: Setting) -> Iterator[Case]:
    name = setting.preset_name(cpu="stack128")
    preset = find_preset(name)
    for dtype in setting.dtypes:
        for batch in setting.batch_sizes(gpu=(1, 8, 32, 64), cpu=(8, 32)):
            sizes = conv_sizes(setting, preset, batch, dtype)
            yield TimedCase(
                SUITE,
                "gated stack",
                {"preset": name, "batch": batch},
                dtype,
                partial(_gated_stacks, setting, preset, batch, dtype, sizes),
                floor=partial(_sum_of_floors, sizes),
            )
            for one in sizes[:1] if setting.quick else sizes:
                yield from map_conv_cases(setting, one)
            channels = preset.decoder["channels"]
            yield from elementwise.cases(setting, preset.make_grid(), channels, batch, dtype)


def conv_sizes(setting: Setting, preset: Preset, batch: int, dtype: torch.dtype) -> list[ConvSizes]:
    """List the convolutions of a `concat` decoder: finest map first, first layer first."""
    channels, kernels = preset.decoder["channels"], preset.decoder["kernel_sizes"]
    widths = [2 * channels, *[channels] * (len(kernels) - 1)]
    return [
        ConvSizes(batch, width, channels + 1, *shape, kernel, dtype, setting.device.type)
        for shape in preset.make_grid().shapes
        for width, kernel in zip(widths, kernels, strict=True)
    ]


def conv_work(sizes: ConvSizes, plan: MapConvPlan) -> Work:
    if plan.transform is None:
        return direct_work(sizes)
    return total(*spectral_work(sizes, plan.transform))


# Gated convolutions over all maps, as the decoder runs them: with fixed weights.


def _gated_stacks(
    setting: Setting, preset: Preset, batch: int, dtype: torch.dtype, sizes: Sequence[ConvSizes]
) -> Contest:
    channels, kernels = preset.decoder["channels"], preset.decoder["kernel_sizes"]
    shapes, layout = preset.make_grid().shapes, memory_format(setting.device, dtype)
    with setting.device:  # initializes large kernels quickly on a GPU
        stacks = [GatedConv2dStack(2 * channels, channels, kernels).eval() for _ in shapes]
    stacks = [stack.to(dtype=dtype, memory_format=layout) for stack in stacks]

    def draw() -> list[Tensor]:
        maps = (setting.random(batch, 2 * channels, *shape, dtype=dtype) for shape in shapes)
        return [setting.layout(one) for one in maps]

    first = draw()
    count = setting.num_inputs(sum(one.nbytes for one in first))
    inputs = [first, *(draw() for _ in range(count - 1))]
    candidates = []
    for backend, named in map_conv_backends(setting).items():
        with inference(named):
            plans = [
                [
                    layer.conv.plan((batch, layer.in_channels, *shape), dtype)
                    for layer in stack.layers
                ]
                for stack, shape in zip(stacks, shapes, strict=True)
            ]
        runs = {backend: partial(_run_stacks, stacks, plans)}
        if backend == "reference" and setting.compiled:
            runs["compiled"] = compiled(runs[backend])
        scope, work = partial(inference, named), total(*map(conv_work, sizes, chain(*plans)))
        candidates += [
            Candidate(way, run, inputs, scope, batch, work, outputs=_first_samples)
            for way, run in runs.items()
        ]

    def expected() -> list[Tensor]:
        results = []
        for x, stack in zip(first, stacks, strict=True):
            x = x[:1].double()
            for layer in stack.layers:
                weight, bias = layer.conv.weight.double(), layer.conv.bias.double()
                x = F.conv2d(x, weight, bias, padding=layer.conv.padding).detach()
                x = F.relu(x[:, :-1]) * x[:, -1:].sigmoid()
            results.append(x)
        return results

    return Contest(candidates, expected)


def _sum_of_floors(sizes: Sequence[ConvSizes], ceilings: Ceilings) -> float:
    return sum(conv_floor(one, ceilings) for one in sizes)


def _first_samples(results: Sequence[Tensor]) -> list[Tensor]:
    return [one[:1] for one in results]


def _run_stacks(
    stacks: Sequence[GatedConv2dStack], plans: Sequence[Sequence[MapConvPlan]], maps: list[Tensor]
) -> list[Tensor]:
    results = []
    for x, stack, own in zip(maps, stacks, plans, strict=True):
        for layer, plan in zip(stack.layers, own, strict=True):
            x = layer(x, plan=plan)
        results.append(x)
    return results


# One convolution: called once, with gradients, and with a plan.


def map_conv_cases(setting: Setting, sizes: ConvSizes) -> Iterator[Case]:
    """Time one convolution in its three uses."""
    span = sizes.kernel_size
    shape = {
        "batch": sizes.batch,
        "maps": f"{sizes.rows}x{sizes.columns}",
        "channels": f"{sizes.in_channels}>{sizes.out_channels}",
        "kernel": f"{span}x{span}",
    }
    for name, contest, floor in (
        ("map_conv forward", _forward, None),
        ("map_conv forward+backward", _forward_and_backward, None),
        ("map_conv planned", _planned, partial(conv_floor, sizes)),
    ):
        yield TimedCase(
            SUITE,
            name,
            shape,
            sizes.dtype,
            lambda contest=contest: contest(setting, sizes, _ConvInputs(setting, sizes)),
            floor=floor,
        )


def choice_cases(setting: Setting) -> Iterator[Case]:
    """Compare measured and estimated ratios of spectral to direct convolution.

    Where they differ much, or are on different sides of 1, the library would choose wrongly without
    measuring (`_DOUBTFUL` in `map_conv/__init__.py`).
    """
    setting = replace(setting, as_in_decoder=True)
    for sizes in SIZES[: 2 if setting.quick else None]:
        conv = ConvSizes(*sizes, setting.dtypes[0], setting.device.type)
        for case in map_conv_cases(setting, conv):
            if case.name != "map_conv forward":
                ratio = f"{expected_ratio(conv, training='backward' in case.name):.2f}"
                shape = {**case.shape, "ratio by arithmetic": ratio}
                yield replace(case, suite="choices", shape=shape)


def expected_ratio(sizes: ConvSizes, *, training: bool) -> float:
    """Estimate spectral over direct time: with gradients in training, else with fixed weights."""
    transform = best_transform(sizes, with_kernel=training)
    return spectral_seconds(sizes, transform, with_kernel=training) / direct_seconds(sizes)


class _ConvInputs:
    """New random inputs of a convolution."""

    def __init__(self, setting: Setting, sizes: ConvSizes) -> None:
        span, maps = sizes.kernel_size, (sizes.rows, sizes.columns)
        self.shape = (sizes.batch, sizes.in_channels, *maps)
        first = setting.layout(setting.random(*self.shape, dtype=sizes.dtype))
        more = setting.num_inputs(first.nbytes) - 1
        self.maps = [first, *(torch.randn_like(first) for _ in range(more))]
        weight = setting.random(sizes.out_channels, sizes.in_channels, span, span)
        weight /= (sizes.in_channels * span**2) ** 0.5
        self.weight = setting.layout(weight.to(sizes.dtype))
        self.bias = setting.random(sizes.out_channels, dtype=sizes.dtype)
        results = (sizes.batch, sizes.out_channels, *maps)
        self.gradient = setting.layout(setting.random(*results, dtype=sizes.dtype))


def _planned(setting: Setting, sizes: ConvSizes, given: _ConvInputs) -> Contest:
    runs, works = {}, {}
    for backend, named in map_conv_backends(setting).items():
        with inference(named):
            plan = plan_map_conv(given.weight, given.shape, sizes.dtype)
        runs[backend] = partial(map_conv, weight=given.weight, bias=given.bias, plan=plan)
        works[backend] = conv_work(sizes, plan)
    expected = partial(_expected, given)
    return Contest(_candidates(sizes, given, runs, works), expected)


def _forward(setting: Setting, sizes: ConvSizes, given: _ConvInputs) -> Contest:
    def run(x: Tensor, backend: str | None) -> Tensor:
        return map_conv(x, given.weight, given.bias, backend=backend)

    works = dict.fromkeys(("reference", "compiled"), direct_work(sizes))
    expected = partial(_expected, given)
    return Contest(_candidates(sizes, given, _called(setting, run), works), expected)


def _forward_and_backward(setting: Setting, sizes: ConvSizes, given: _ConvInputs) -> Contest:
    def run(x: Tensor, backend: str | None) -> tuple[Tensor, ...]:
        inputs = [one.detach().requires_grad_() for one in (x, given.weight, given.bias)]
        result = map_conv(*inputs, backend=backend)
        return result.detach(), *torch.autograd.grad(result, inputs, given.gradient)

    def expected() -> list[Tensor]:
        x = given.maps[0][:1].double().requires_grad_()
        result = _in_float64(given, x)
        return [result.detach(), *torch.autograd.grad(result, x, given.gradient[:1].double())]

    work = Work(3 * direct_work(sizes).operations)
    works = dict.fromkeys(("reference", "compiled"), work)
    candidates = _candidates(
        sizes,
        given,
        _called(setting, run),
        works,
        backends,
        # Gradients of weight and bias are not per sample.
        lambda results: [one[:1] for one in results[:2]],
    )
    return Contest(candidates, expected)


def _called(
    setting: Setting, run: Callable[[Tensor, str | None], Any]
) -> dict[str, Callable[[Tensor], Any]]:
    asked = {"reference": "direct", "spectral": "spectral", "auto": None}
    runs = {name: partial(run, backend=backend) for name, backend in asked.items()}
    return {**runs, "compiled": compiled(runs["reference"])} if setting.compiled else runs


def _candidates(
    sizes: ConvSizes,
    inputs: _ConvInputs,
    runs: Mapping[str, Callable[[Tensor], Any]],
    works: Mapping[str, Work],
    scope: Callable[[str], AbstractContextManager[None]] = inference,
    outputs: Callable[[Any], Sequence[Tensor]] = first_sample,
) -> list[Candidate]:
    given = (inputs.maps, partial(scope, AUTO), sizes.batch)
    return [Candidate(name, run, *given, works.get(name), outputs) for name, run in runs.items()]


def _expected(given: _ConvInputs) -> list[Tensor]:
    return [_in_float64(given, given.maps[0][:1].double())]


def _in_float64(given: _ConvInputs, x: Tensor) -> Tensor:
    weight, bias = given.weight.double(), given.bias.double()
    return F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2)
