"""Compile the Triton kernels for a GPU, which is not needed, and print the resources they use.

python benchmarks/kernel_resources.py [--architecture 90] [--dtype bfloat16] [--json]

For each kernel, at the sizes of the paper and in the memory layout of convolutions: registers and
spilled bytes per thread, shared memory and warps per program, loads and stores of 16 bytes and of
fewer per thread, and tensor core instructions. Nothing is timed.
"""

import argparse
import json
import math
import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)  # kernels are compiled here, not interpreted

import torch
import triton
from budgets import print_head
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

from tmapdiff.kernels import _alignment
from tmapdiff.kernels.gate import triton as gate
from tmapdiff.kernels.map_conv import triton as map_conv
from tmapdiff.kernels.stylization import triton as stylization

CHANNELS, ROOM, GROUPS = 512, 528, 8  # ROOM: the gate's input of 513 channels, in aligned rows
_CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


@dataclass(frozen=True)
class Resources:
    """Resources of a GPU that a kernel uses."""

    kernel: str
    case: str
    programs: int  # per launch
    warps: int  # per program
    registers: int  # per thread
    spilled: int  # bytes per thread that did not fit into registers
    shared: int  # bytes of shared memory per program
    wide: int  # loads and stores of global memory with 16 bytes per thread
    narrow: int  # loads and stores of global memory with fewer bytes
    tensor_cores: int  # instructions


@contextmanager
def compiled_only(architecture: int) -> Iterator[list[tuple[str, int, Any]]]:
    """Compile kernels that the block launches, without launching them.

    Yields a list that gets the name, programs and compiled kernel of each launch.
    """
    found: list[tuple[str, int, Any]] = []
    run = JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        kernel = run(self, *args, grid=grid, warmup=True, **options)
        found.append((self.fn.__name__, math.prod(grid), kernel))
        return kernel

    # Replaces the driver of a GPU.
    gpu = SimpleNamespace(
        get_current_target=lambda: GPUTarget("cuda", architecture, 32),
        get_current_device=lambda: 0,
        get_current_stream=lambda device: 0,
    )
    driver.set_active(gpu)
    # Tensors are on the CPU, but aligned as on the GPU.
    aligned = _alignment._ALIGNED
    _alignment._ALIGNED = {"cpu": aligned["cuda"]}
    JITFunction.run = compile_only
    try:
        yield found
    finally:
        JITFunction.run, _alignment._ALIGNED = run, aligned


def cases(dtype: torch.dtype) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield the name and the function of each launch."""
    batch, back = 32, stylization._stylize_backward_op
    style = torch.empty(batch, CHANNELS, dtype=dtype)
    kept = torch.empty(batch, GROUPS, 3)
    # The finest and the coarsest map of the paper; the former's groups need several programs.
    for rows, columns in ((64, 16), (16, 16)):
        mask = torch.ones(rows, columns, dtype=torch.bool)
        x = torch.empty(columns, rows, batch, CHANNELS, dtype=dtype).permute(2, 3, 1, 0)
        wide = torch.empty(columns, rows, batch, ROOM, dtype=dtype)
        wide = wide[..., : CHANNELS + 1].permute(2, 3, 1, 0)
        for name, launch, arguments in (
            ("gate", gate._gate_op, (wide, mask, CHANNELS)),
            ("gate backward", gate._gate_backward_op, (x, wide, mask, CHANNELS)),
            ("group norm", stylization._stylize_op, (x, style, style, mask, GROUPS)),
            ("group norm backward", back, (x, x, style, style, mask, kept, GROUPS)),
        ):
            yield f"{name}, {rows}x{columns}", partial(launch, *arguments)
    for rows in (16, 32, 256):
        spectra = torch.empty(2, 2, 1, rows, 2 * CHANNELS, dtype=dtype)
        kernel = torch.empty(2, 2, 2 * CHANNELS, ROOM, dtype=dtype)
        launch = partial(map_conv.multiply_spectra, spectra, kernel)
        yield f"product of spectra, {rows} rows", launch


def resources(architecture: int, dtype: torch.dtype) -> list[Resources]:
    """Compile all cases, and return the resources they use."""
    found = []
    with compiled_only(architecture) as compiled:
        for case, launch in cases(dtype):
            launch()
            found += [_resources(case, *one) for one in compiled]
            compiled.clear()
    return found


def _resources(case: str, name: str, programs: int, kernel: Any) -> Resources:
    ptx, used = kernel.asm["ptx"], _usage(kernel.asm["cubin"])
    moves = re.findall(r"\b(?:ld|st)\.global[\w.:]*|\bcp\.async\.c\w\.shared\.global[^;]*", ptx)
    wide = sum(".v4.b32" in one or re.search(r"0x10\b", one) is not None for one in moves)
    return Resources(
        name,
        case,
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
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--architecture", type=int, default=90, help="compute capability: 80, 90 (H100) or 100")
    add("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    add("--json", action="store_true", help="print JSON lines")
    options = parser.parse_args(arguments)
    found = resources(options.architecture, getattr(torch, options.dtype))
    if options.json:
        for one in found:
            print(json.dumps(asdict(one)))
        return
    print_head([field.name for field in fields(Resources)])
    for one in found:
        print("|", *(f"{value} |" for value in asdict(one).values()))


if __name__ == "__main__":
    main()
