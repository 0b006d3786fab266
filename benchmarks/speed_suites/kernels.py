"""Single operations, at the sizes that a preset gives them."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain

import torch
import torch.nn.functional as F
from speed_cases import Candidate, Case, Contest, TimedCase, Work
from torch import Tensor

from speed_suites import elementwise
from speed_suites.floors import conv_floor, direct_work, spectral_work, total
from speed_suites.setting import (
    AUTO,
    Setting,
    backends,
    compiled,
    find_preset,
    inference,
    map_conv_backends,
    memory_format,
)
from tmapdiff.kernels.map_conv import MapConvPlan, map_conv, plan_map_conv
from tmapdiff.kernels.map_conv.costs import ConvSizes
from tmapdiff.layers import GatedConv2dStack
from tmapdiff.presets import Preset

SUITE = "kernels"


def cases(setting: Setting) -> Iterator[Case]:
    """Measure each operation in each dtype and batch size."""
    name = setting.preset_name(cpu="stack128")
    preset = find_preset(name)
    for dtype in setting.dtypes:
        for batch in setting.batch_sizes(gpu=(1, 8, 32, 64), cpu=(8, 32)):
            sizes = conv_sizes(setting, preset, batch, dtype)
            yield gated_stack_case(setting, name, batch, dtype, sizes)
            for one in sizes[:1] if setting.quick else sizes:
                yield from map_conv_cases(setting, one)
            channels = preset.decoder["channels"]
            yield from elementwise.cases(setting, preset.make_grid(), channels, batch, dtype)


def conv_sizes(setting: Setting, preset: Preset, batch: int, dtype: torch.dtype) -> list[ConvSizes]:
    """List the convolutions of a decoder that concatenates: finest map first, first layer first."""
    channels, kernels = preset.decoder["channels"], preset.decoder["kernel_sizes"]
    widths = [2 * channels, *[channels] * (len(kernels) - 1)]
    return [
        ConvSizes(batch, width, channels + 1, *shape, kernel, dtype, setting.device.type)
        for shape in preset.make_grid().shapes
        for width, kernel in zip(widths, kernels, strict=True)
    ]


def conv_work(sizes: ConvSizes, plan: MapConvPlan) -> Work:
    """Work of a planned convolution."""
    if plan.transform is None:
        return direct_work(sizes)
    return total(*spectral_work(sizes, plan.transform))


# Gated convolutions over all maps, as the decoder runs them: with weights that stay.


def gated_stack_case(
    setting: Setting, name: str, batch: int, dtype: torch.dtype, sizes: Sequence[ConvSizes]
) -> Case:
    """Time the gated convolutions of all scales."""
    return TimedCase(
        SUITE,
        "gated stack",
        {"preset": name, "batch": batch},
        dtype,
        lambda: _gated_stacks(setting, find_preset(name), batch, dtype, sizes),
        floor=lambda ceilings: sum(conv_floor(one, ceilings) for one in sizes),
    )


def _gated_stacks(
    setting: Setting, preset: Preset, batch: int, dtype: torch.dtype, sizes: Sequence[ConvSizes]
) -> Contest:
    channels, shapes = preset.decoder["channels"], preset.make_grid().shapes
    layout = memory_format(setting.device, dtype)
    with setting.device:  # where large kernels are initialised in no time
        stacks = [
            GatedConv2dStack(2 * channels, channels, preset.decoder["kernel_sizes"])
            .to(dtype=dtype, memory_format=layout)
            .eval()
            for _ in shapes
        ]

    def draw() -> list[Tensor]:
        return [
            setting.layout(setting.random(batch, 2 * channels, *shape, dtype=dtype))
            for shape in shapes
        ]

    first = draw()
    inputs = [first, *(draw() for _ in range(setting.num_inputs(_bytes(*first)) - 1))]
    candidates = []
    for backend, named in map_conv_backends(setting).items():
        with inference(named):
            plans = [
                [layer.plan((batch, layer.in_channels, *shape), dtype) for layer in stack.layers]
                for stack, shape in zip(stacks, shapes, strict=True)
            ]
        run, scope = partial(_run_stacks, stacks, plans), partial(inference, named)
        work = total(*map(conv_work, sizes, chain(*plans)))
        candidates.append(
            Candidate(backend, run, inputs, scope, batch, work, outputs=_first_samples)
        )
        if backend == "reference" and setting.compiled:
            candidates.append(
                Candidate(
                    "compiled", compiled(run), inputs, scope, batch, work, outputs=_first_samples
                )
            )

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
    """Time one convolution in the three ways that it is used."""
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
        build = partial(_with_inputs, contest, setting, sizes)
        yield TimedCase(SUITE, name, shape, sizes.dtype, build, floor=floor)


class _ConvInputs:
    """What one convolution takes, drawn anew."""

    def __init__(self, setting: Setting, sizes: ConvSizes) -> None:
        span, maps = sizes.kernel_size, (sizes.rows, sizes.columns)
        self.shape = (sizes.batch, sizes.in_channels, *maps)
        first = setting.layout(setting.random(*self.shape, dtype=sizes.dtype))
        more = setting.num_inputs(_bytes(first)) - 1
        self.maps = [first, *(torch.randn_like(first) for _ in range(more))]
        weight = setting.random(sizes.out_channels, sizes.in_channels, span, span)
        weight /= (sizes.in_channels * span**2) ** 0.5
        self.weight = setting.layout(weight.to(sizes.dtype))
        self.bias = setting.random(sizes.out_channels, dtype=sizes.dtype)
        results = (sizes.batch, sizes.out_channels, *maps)
        self.gradient = setting.layout(setting.random(*results, dtype=sizes.dtype))


def _with_inputs(
    contest: Callable[[Setting, ConvSizes, _ConvInputs], Contest],
    setting: Setting,
    sizes: ConvSizes,
) -> Contest:
    return contest(setting, sizes, _ConvInputs(setting, sizes))


def _planned(setting: Setting, sizes: ConvSizes, given: _ConvInputs) -> Contest:
    candidates = []
    for backend, named in map_conv_backends(setting).items():
        with inference(named):
            plan = plan_map_conv(given.weight, given.shape, sizes.dtype)
        run = partial(map_conv, weight=given.weight, bias=given.bias, plan=plan)
        candidates.append(
            Candidate(
                backend,
                run,
                given.maps,
                partial(inference, AUTO),
                sizes.batch,
                conv_work(sizes, plan),
                outputs=_first_sample,
            )
        )
    if setting.on_gpu:  # cuDNN has other algorithms for it
        nchw = [one.contiguous() for one in given.maps]
        weight = given.weight.contiguous()
        run = partial(map_conv, weight=weight, bias=given.bias, plan=MapConvPlan("direct"))
        scope = partial(inference, AUTO)
        candidates.append(Candidate("reference, NCHW", run, nchw, scope, sizes.batch))
    return Contest(candidates, lambda: [_in_float64(given, given.maps[0][:1].double())])


def _forward(setting: Setting, sizes: ConvSizes, given: _ConvInputs) -> Contest:
    candidates = []
    for backend, asked in _call_backends(setting).items():
        run = partial(map_conv, weight=given.weight, bias=given.bias, backend=asked)
        candidates.append(
            Candidate(
                backend,
                compiled(run) if backend == "compiled" else run,
                given.maps,
                partial(inference, AUTO),
                sizes.batch,
                direct_work(sizes) if asked == "direct" else None,
                outputs=_first_sample,
            )
        )
    return Contest(candidates, lambda: [_in_float64(given, given.maps[0][:1].double())])


def _forward_and_backward(setting: Setting, sizes: ConvSizes, given: _ConvInputs) -> Contest:
    def run(backend: str | None, x: Tensor) -> tuple[Tensor, ...]:
        inputs = [one.detach().requires_grad_() for one in (x, given.weight, given.bias)]
        result = map_conv(*inputs, backend=backend)
        return result.detach(), *torch.autograd.grad(result, inputs, given.gradient)

    def expected() -> list[Tensor]:
        x = given.maps[0][:1].double().requires_grad_()
        result = _in_float64(given, x)
        return [result.detach(), *torch.autograd.grad(result, x, given.gradient[:1].double())]

    work = Work(3 * direct_work(sizes).operations)
    candidates = []
    for backend, asked in _call_backends(setting).items():
        own = partial(run, asked)
        candidates.append(
            Candidate(
                backend,
                compiled(own) if backend == "compiled" else own,
                given.maps,
                partial(backends, AUTO),
                sizes.batch,
                work if asked == "direct" else None,
                outputs=lambda results: [one[:1] for one in results[:2]],
            )
        )
    return Contest(candidates, expected)


def _call_backends(setting: Setting) -> dict[str, str | None]:
    """Name the ways to call a convolution, and the backend that each asks for."""
    named = {"reference": "direct", "spectral": "spectral", "auto": None}
    return {**named, "compiled": "direct"} if setting.compiled else named


def _in_float64(given: _ConvInputs, x: Tensor) -> Tensor:
    weight, bias = given.weight.double(), given.bias.double()
    return F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2)


def _first_sample(result: Tensor) -> list[Tensor]:
    return [result[:1]]


def _first_samples(results: Sequence[Tensor]) -> list[Tensor]:
    return [one[:1] for one in results]


def _bytes(*tensors: Tensor) -> int:
    return sum(one.nbytes for one in tensors)
