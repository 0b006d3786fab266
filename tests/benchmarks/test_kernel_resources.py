"""Kernels compile for GPUs, without one: Triton's interpreter accepts more than its compiler."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")
pytestmark = pytest.mark.process
SCRIPT = Path(__file__).parents[2] / "benchmarks" / "kernel_resources.py"
KERNELS = {
    "_forward",
    "_backward",
    "_group",
    "_group_backward",
    "_group_part",
    "_group_part_backward",
    "_multiply",
}


def resources(cache: Path, *arguments: str) -> list[dict[str, Any]]:
    # In a separate process, as triton chooses on import whether to interpret.
    command = [sys.executable, SCRIPT, "--json", *arguments]
    environment = {**os.environ, "TRITON_CACHE_DIR": str(cache)}
    output = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=True
    ).stdout
    return [json.loads(line) for line in output.splitlines()]


@pytest.fixture(scope="module")
def on_hopper(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return resources(tmp_path_factory.mktemp("compiled"), "--architecture", "90")


def test_kernels_compile(on_hopper: list[dict[str, Any]]) -> None:
    assert {one["kernel"] for one in on_hopper} == KERNELS


def test_registers_suffice(on_hopper: list[dict[str, Any]]) -> None:
    assert [one for one in on_hopper if one["spilled"] > 32] == []


def test_maps_are_read_and_written_16_bytes_a_thread(on_hopper: list[dict[str, Any]]) -> None:
    # Masks, styles and sums have narrower accesses, as they are smaller.
    for one in on_hopper:
        maps_alone = one["kernel"] == "_multiply"
        assert one["narrow"] <= (0 if maps_alone else 16), one
        assert one["wide"] >= (20 if maps_alone else 3), one


def test_products_use_tensor_cores(on_hopper: list[dict[str, Any]]) -> None:
    products = [one for one in on_hopper if one["kernel"] == "_multiply"]
    assert len(products) == 3
    assert all(one["tensor_cores"] > 0 for one in products)


@pytest.mark.parametrize(
    "arguments", [["--architecture", "80", "--dtype", "float16"], ["--dtype", "float32"]]
)
def test_other_gpus_and_dtypes(arguments: list[str], tmp_path: Path) -> None:
    found = resources(tmp_path, *arguments)
    assert {one["kernel"] for one in found} == KERNELS
    assert [one for one in found if one["spilled"] > 32] == []
