"""Compile the Triton kernels for a GPU that need not be there, and tell what of it they take.

python benchmarks/kernel_resources.py [--architecture 90] [--dtype bfloat16] [--quick] [--json]

Of each kernel, at the sizes of the paper: registers a thread, bytes that a thread spills for want
of them, shared memory and warps of a program, loads and stores of 16 bytes and of fewer a thread,
and the tensor cores' instructions. Nothing is timed.
"""

import argparse
import json
import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)  # kernels are compiled here, not interpreted

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

from tmapdiff.kernels import _alignment
from tmapdiff.kernels.ddim_step import triton as ddim_step
from tmapdiff.kernels.gate import triton as gate
from tmapdiff.kernels.map_conv import triton as map_conv
from tmapdiff.kernels.stylization import triton as stylization

CHANNELS, ROOM, GROUPS = 512, 528, 8  # of the gate's input, one more channel in aligned rows
_CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


@dataclass(frozen=True)
class Resources:
    """What a kernel takes of a GPU.

    Args:
        kernel: Its name.
        case: What it was compiled for.
        dtype: Of the maps.
        programs: Programs of a launch.
        warps: Warps of a program.
        registers: Registers of a thread.
        spilled: Bytes of a thread's that did not fit into registers.
        shared: Bytes of shared memory of a program.
        wide: Loads and stores of global memory that move 16 bytes a thread.
        narrow: Those that move fewer.
        tensor_cores: Instructions of the tensor cores.
    """

    kernel: str
    case: str
    dtype: str
    programs: int
    warps: int
    registers: int
    spilled: int
    shared: int
    wide: int
    narrow: int
    tensor_cores: int


class _AbsentGpu:
    """Stands for the driver of a GPU that is not there."""

    def __init__(self, architecture: int) -> None:
        self._target = GPUTarget("cuda", architecture, 32)

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


@contextmanager
def compiled_only(architecture: int) -> Iterator[list[tuple[str, int, Any]]]:
    """Compile what is launched in the block, and launch nothing.

    Gives a list of name, programs and compiled kernel, which grows with each launch.
    """
    found: list[tuple[str, int, Any]] = []
    run = JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        kernel = run(self, *args, grid=grid, warmup=True, **options)
        programs = 1
        for size in grid:
            programs *= size
        found.append((self.fn.__name__, programs, kernel))
        return kernel

    driver.set_active(_AbsentGpu(architecture))
    # Tensors are on the CPU, but made as they would be on the GPU.
    aligned = _alignment._ALIGNED
    _alignment._ALIGNED = {"cpu": aligned["cuda"]}
    JITFunction.run = compile_only
    try:
        yield found
    finally:
        JITFunction.run, _alignment._ALIGNED = run, aligned


def cases(dtype: torch.dtype, quick: bool) -> Iterator[tuple[str, Callable[[], Any]]]:
    """List launches: a name, and what launches."""
    batch = 32
    # The finest and the coarsest map of the paper; the former's groups need several programs.
    for rows, columns in ((64, 16), (16, 16)):
        mask = torch.ones(rows, columns, dtype=torch.bool)
        bias = torch.empty(CHANNELS + 1, dtype=dtype)
        style = torch.empty(batch, CHANNELS, dtype=dtype)
        for layout in ("channels innermost", "cells innermost")[: 1 if quick else 2]:

            def maps(channels: int, rows: int = rows, layout: str = layout) -> Tensor:
                if layout == "cells innermost":
                    return torch.empty(batch, channels, rows, 16, dtype=dtype)
                # As convolutions make them.
                room = ROOM if channels > CHANNELS else channels
                wide = torch.empty(16, rows, batch, room, dtype=dtype)
                return wide[..., :channels].permute(2, 3, 1, 0)

            x, wide = maps(CHANNELS), maps(CHANNELS + 1)
            statistics = torch.empty(batch, GROUPS, 3)
            launches: dict[str, Callable[[], Any]] = {
                "gate": lambda wide=wide, mask=mask, bias=bias: gate._gate_op(
                    wide, mask, CHANNELS, bias
                ),
                "gate backward": lambda x=x, wide=wide, mask=mask, bias=bias: (
                    gate._gate_backward_op(x, wide, mask, CHANNELS, bias)
                ),
                "group norm": lambda x=x, style=style, mask=mask: stylization._stylize_op(
                    x, style, style, mask, GROUPS, 1e-5
                ),
                "group norm backward": lambda x=x, style=style, mask=mask, kept=statistics: (
                    stylization._stylize_backward_op(x, x, style, style, mask, kept, GROUPS, 1e-5)
                ),
                "layer norm": lambda x=x, style=style, mask=mask: stylization._stylize_op(
                    x, style, style, mask, None, 1e-5
                ),
                "layer norm backward": lambda x=x, style=style, mask=mask, kept=statistics: (
                    stylization._stylize_backward_op(x, x, style, style, mask, kept, None, 1e-5)
                ),
            }
            for name, launch in launches.items():
                yield f"{name}, {rows}x{columns}, {layout}", launch
    for rows in (16, 32, 256):
        spectra = torch.empty(2, 2, 1, rows, 2 * CHANNELS, dtype=dtype)
        kernel = torch.empty(2, 2, 2 * CHANNELS, ROOM, dtype=dtype)
        yield (
            f"product of spectra, {rows} rows",
            lambda spectra=spectra, kernel=kernel: map_conv.multiply_spectra(spectra, kernel),
        )
    scores, noisy, row = torch.empty(batch, 1792, dtype=dtype), torch.empty(batch, 1792), [0.0] * 4
    yield "DDIM step", lambda: ddim_step.ddim_step(scores, noisy, row, True, True)


def resources(architecture: int, dtype: torch.dtype, quick: bool = False) -> list[Resources]:
    """Compile all cases, and tell what they take."""
    found = []
    with compiled_only(architecture) as compiled:
        for case, launch in cases(dtype, quick):
            launch()
            for name, programs, kernel in compiled:
                found.append(_resources(name, case, dtype, programs, kernel))
            compiled.clear()
    return found


def _resources(name: str, case: str, dtype: torch.dtype, programs: int, kernel: Any) -> Resources:
    ptx, used = kernel.asm["ptx"], _usage(kernel.asm["cubin"])
    moves = re.findall(r"\b(?:ld|st)\.global[\w.:]*|\bcp\.async\.c\w\.shared\.global[^;]*", ptx)
    wide = sum(".v4.b32" in one or re.search(r"0x10\b", one) is not None for one in moves)
    return Resources(
        name,
        case,
        str(dtype).removeprefix("torch."),
        programs,
        kernel.metadata.num_warps,
        used["REG"],
        used["STACK"],
        kernel.metadata.shared,
        wide,
        len(moves) - wide,
        len(re.findall(r"\bw?g?mma\.(?:mma_async|sync)\.\S*m\d+n\d+k\d+", ptx)),
    )


def _usage(cubin: bytes) -> dict[str, int]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(cubin)
        text = subprocess.run(
            [_CUOBJDUMP, "--dump-resource-usage", path], capture_output=True, text=True, check=True
        ).stdout
    return {name: int(number) for name, number in re.findall(r"(REG|STACK):(\d+)", text)}


def main(arguments: list[str] | None = None) -> None:
    """Print a table of all cases."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--architecture", type=int, default=90, help="compute capability, as 80, 90 (H100) or 100"
    )
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    parser.add_argument("--tf32", action="store_true", help="float32 on tensor cores")
    parser.add_argument("--quick", action="store_true", help="one memory layout only")
    parser.add_argument("--json", action="store_true", help="print JSON lines")
    options = parser.parse_args(arguments)
    torch.backends.cuda.matmul.allow_tf32 = options.tf32
    found = resources(options.architecture, getattr(torch, options.dtype), options.quick)
    if options.json:
        for one in found:
            print(json.dumps(asdict(one)))
        return
    names = [field.name for field in fields(Resources) if field.name not in ("dtype", "case")]
    print("| case | " + " | ".join(names) + " |")
    print("| --- |" + " --- |" * len(names))
    for one in found:
        print(f"| {one.case} | " + " | ".join(str(getattr(one, name)) for name in names) + " |")


if __name__ == "__main__":
    main()
