"""Measure speed and memory, compared with plain torch, torch.compile, and MS-2D-TAN.

    python benchmarks/speed.py --suite kernels --preset stack128 --batch 8 32
    python benchmarks/speed.py --suite sampling decoder --device cuda --dtype bfloat16
    python benchmarks/speed.py --quick

Candidates take turns on changing inputs. Times are medians after warm-up; results are ratios to the
case's reference in the same run, below 1 if faster. On a CPU that others use, too, --cpu-time is
more reliable: the CPU time of a single thread. Backends: `reference` is plain torch, `compiled` is
torch.compile of it, `auto` is the default, and others are selected by name. `ms2dtan` is one pass
of MS-2D-TAN over the same map features, with direct convolutions. On a GPU, half precision uses
channels_last, float32 may use TF32, and cuDNN benchmarks its algorithms.

Suites: kernels (single operations), decoder (one denoising step), sampling (ten steps, compared
with one pass of MS-2D-TAN), training (with --baseline, compared with another checkout),
postprocess, memory (peaks). With --quick, these run at small sizes, without torch.compile, within a
minute or two on two CPU cores. Only when named: operations (`eager` against the definition),
choices (direct against spectral convolution), long-videos, corpus, export.

It prints a table, and writes a JSON file to runs/speed or --output. If a case fails, the others are
still measured, and the exit status is 1.
"""

import argparse
import gc
import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from speed_cases import Bench, Record, dtype_name
from speed_suites import EXTRA_SUITES, SUITES
from speed_suites.floors import measure_ceilings
from speed_suites.setting import PRESET_NAMES, Setting, forget_models
from speed_table import print_ceilings, print_records
from timing import QUICK, CpuClock, Effort, clock_of

from tmapdiff import TmapdiffError
from tmapdiff._core.files import written_beside
from tmapdiff.errors import ArgumentError
from tmapdiff.kernels._dispatch import CACHE_VARIABLE, _processor
from tmapdiff.provenance import describe_run

SEED = 0
DTYPES = {dtype_name(one): one for one in (torch.float32, torch.bfloat16, torch.float16)}


def measure(
    names: Sequence[str],
    setting: Setting,
    bench: Bench,
    only: str,
    save: Callable[[list[Record]], None],
) -> list[Record]:
    """Run suites; after each case, print it and save all results so far."""
    records: list[Record] = []
    for name in names:
        for case in {**SUITES, **EXTRA_SUITES}[name](setting):
            if only not in case.name:
                continue
            found = case.measure(bench)
            print_records(found)
            records += found
            save(records)
            # Free the memory for the next case.
            if setting.compiled:
                torch.compiler.reset()
            gc.collect()
            if setting.on_gpu:
                torch.cuda.empty_cache()
        forget_models()
    return records


def describe(setting: Setting) -> dict[str, Any]:
    return {
        "timestamp": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": ["benchmarks/speed.py", *sys.argv[1:]],
        "device": torch.cuda.get_device_name(setting.device) if setting.on_gpu else "cpu",
        "cuda": torch.version.cuda if setting.on_gpu else None,
        "cudnn": torch.backends.cudnn.version() if setting.on_gpu else None,
        "cpu": _processor(),
        "seed": SEED,
        **describe_run(str(Path(__file__).parent)),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--suite", nargs="+", default=["all"], choices=[*SUITES, *EXTRA_SUITES, "all"])
    add("--device", choices=("cpu", "cuda"), help="(default: cuda if there is a GPU)")
    add("--preset", choices=PRESET_NAMES, help="sizes (default: each suite's own)")
    add("--batch", nargs="+", type=int, default=[], help="(default: each suite's own)")
    add("--dtype", nargs="+", choices=DTYPES, help="(default: float32; bfloat16 on a GPU)")
    add("--only", default="", metavar="TEXT", help="only cases whose name contains this")
    add("--no-compile", action="store_true", help="skip torch.compile, which is slow on a CPU")
    add("--baseline", type=Path, metavar="CHECKOUT", help="compare training and sampling with it")
    add("--seconds", type=float, default=2.0, help="seconds per candidate (default: 2)")
    add("--cpu-time", action="store_true", help="measure the CPU time of one thread")
    add("--quick", action="store_true", help="small sizes, to check that everything runs")
    add("--output", type=Path, help="JSON file (default: in runs/speed)")
    args = parser.parse_args(arguments)

    device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cuda" and args.cpu_time:
        raise ArgumentError("speed: expected --device cpu for --cpu-time, got cuda.")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ArgumentError("speed: expected a GPU for --device cuda, torch sees none.")
    if any(batch < 1 for batch in args.batch):
        raise ArgumentError(f"speed: expected --batch of 1 or more, got {min(args.batch)}.")
    dtypes = args.dtype or (["bfloat16"] if device.type == "cuda" else ["float32"])
    chosen = [*SUITES, *args.suite] if "all" in args.suite else args.suite
    names = [name for name in (*SUITES, *EXTRA_SUITES) if name in chosen]
    setting = Setting(
        device,
        [DTYPES[name] for name in dtypes],
        args.batch,
        args.preset,
        compiled=not (args.no_compile or args.quick),
        quick=args.quick,
        baseline=args.baseline,
        cpu_time=args.cpu_time,
    )
    if setting.on_gpu:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
    torch.manual_seed(SEED)
    # It warns about each model that is moved.
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    clock = clock_of(device)
    if setting.cpu_time:
        torch.set_num_threads(1)
        clock = CpuClock(time.process_time)
    ceilings = measure_ceilings(setting, clock)
    print_ceilings(ceilings)
    bench = Bench(device, clock, QUICK if args.quick else Effort(seconds=args.seconds), ceilings)
    rates = ceilings.operations_a_second
    about = {
        "metadata": describe(setting),
        "ceilings": {
            "bytes_per_second": ceilings.bytes_a_second,
            "operations_per_second": {dtype_name(dtype): rates[dtype] for dtype in rates},
        },
    }
    name = "-".join([*args.suite, device.type, *dtypes, *(["quick"] if args.quick else [])])
    output = args.output or Path("runs", "speed", f"{name}.json")

    def save(records: list[Record]) -> None:
        with written_beside(output) as new:
            new.write_text(json.dumps({**about, "results": list(map(asdict, records))}, indent=1))

    # Measure the fastest convolutions in this run, without the cache of earlier ones.
    with tempfile.TemporaryDirectory() as fresh, patch.dict(os.environ, {CACHE_VARIABLE: fresh}):
        records = measure(names, setting, bench, args.only, save)
    save(records)
    print(f"\nwritten to {output}")
    errors = [one for one in records if one.error is not None]
    for one in errors:
        print(f"FAILED {one.suite}: {one.case}, {one.backend or 'all'}: {one.error}")
    if not records:
        print(f"FAILED no case's name contains {args.only!r}")
    return 1 if errors or not records else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except TmapdiffError as error:
        sys.exit(f"error: {error}")
