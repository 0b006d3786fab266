import ast
from pathlib import Path

import pytest
import torch
from helpers.assertions import assert_close
from helpers.contracts import draw
from helpers.kernels import DEVICE, LAYOUTS

import tmapdiff.kernels
from tmapdiff.kernels import _launch
from tmapdiff.kernels._launch import (
    cell_strides,
    in_order,
    mask_bytes,
    uses_tf32,
    why_not_triton,
    within_reach,
)
from tmapdiff.kernels.gate import gate_features
from tmapdiff.kernels.map_conv import map_conv
from tmapdiff.kernels.stylization import stylize


def test_bytes_of_masks_follow_each_other() -> None:
    assert mask_bytes(None) == (None, 0)
    cell = torch.arange(20)
    for mask in (
        draw(5, 4) > 0,
        draw(2, 5, 4) > 0,
        draw(4, 5).T > 0,
        draw(4, 2, 5).movedim(0, 2) > 0,
    ):
        valid, by_sample = mask_bytes(mask)
        offsets = torch.arange(2)[:, None] * by_sample + cell
        memory = valid.as_strided((valid.numel(),), (1,))
        assert torch.equal(memory[offsets] != 0, mask.expand(2, -1, -1).flatten(1))


def test_cells_that_follow_each_other_are_one_column() -> None:
    for layout, columns in (("contiguous", 1), ("channels_last", 1), ("durations_outermost", 4)):
        assert cell_strides(LAYOUTS[layout](draw(2, 3, 5, 4)))[0] == columns


def test_reasons(monkeypatch: pytest.MonkeyPatch) -> None:
    x = draw(2, 3)
    assert why_not_triton(x.double()) in ("they hold torch.float64", "they are on cpu")
    assert why_not_triton(x.to("meta")) == "they are on meta"
    assert why_not_triton(x, x.to("meta")) == "they are on cpu and meta"
    monkeypatch.setattr(_launch, "_INTERPRETED", True)
    monkeypatch.setattr(_launch, "_HAS_TRITON", True)
    assert why_not_triton(x) is None
    monkeypatch.setattr(_launch, "_MOST_ELEMENTS", 3)
    assert why_not_triton(x) == "a sample has 2**31 elements or more"
    monkeypatch.setattr(_launch, "_INTERPRETED", False)
    assert why_not_triton(x) == "they are on cpu"
    monkeypatch.setattr(_launch, "_HAS_TRITON", False)
    assert why_not_triton(x) == "triton is not installed"


def test_triton_is_best_on_a_gpu_only() -> None:
    assert list(in_order(torch.device("cuda"), None, reference=None)) == ["triton", "reference"]
    assert list(in_order(torch.device("cpu"), None, reference=None)) == ["reference", "triton"]


def launches(path: Path) -> list[bool]:
    """Whether each kernel launch in a file is on the device of a tensor."""
    found = []

    def visit(node: ast.AST, guarded: bool) -> None:
        if isinstance(node, ast.With):
            guarded |= any("torch.cuda.device_of(" in ast.unparse(one) for one in node.items)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Subscript):
            found.append(guarded)
        for child in ast.iter_child_nodes(node):
            visit(child, guarded)

    visit(ast.parse(path.read_text()), False)
    return found


def test_kernels_run_where_their_tensors_are() -> None:
    """Otherwise they would run on the current GPU, which cannot read another's memory."""
    found = {path: launches(path) for path in Path(tmapdiff.kernels.__path__[0]).rglob("triton.py")}
    assert sum(map(len, found.values())) >= 7
    assert [path for path, guarded in found.items() if not all(guarded)] == []


@pytest.fixture
def matmul():
    """Settings of products on a GPU, restored afterwards."""
    settings = torch.backends.cuda.matmul
    in_words = hasattr(settings, "fp32_precision")
    before = settings.fp32_precision if in_words else settings.allow_tf32
    yield settings
    setattr(settings, "fp32_precision" if in_words else "allow_tf32", before)


def test_tf32_is_known_by_its_old_setting(matmul) -> None:
    for wanted in (True, False):
        matmul.allow_tf32 = wanted
        assert uses_tf32() is wanted


def test_tf32_is_known_by_its_setting_in_words(matmul) -> None:
    """After that, torch refuses to read the old one, which map convolutions do on a CPU, too."""
    if not hasattr(matmul, "fp32_precision"):
        pytest.skip("torch has no settings in words yet")
    for wanted in ("tf32", "ieee"):
        matmul.fp32_precision = wanted
        assert uses_tf32() is (wanted == "tf32")
        x, weight = draw(1, 2, 5, 4), draw(3, 2, 3, 3)
        found = map_conv(x, weight, backend="spectral")
        torch.testing.assert_close(found, map_conv(x, weight, backend="direct"))


@pytest.mark.interpreter
@pytest.mark.parametrize("op", ["gate", "stylization"])
def test_results_are_within_reach_of_32_bits(monkeypatch, op: str) -> None:
    """If samples are interleaved in memory, as with durations outermost."""
    pytest.importorskip("triton")
    x = LAYOUTS["durations_outermost"](draw(6, 4, 5, 3)).to(DEVICE).requires_grad_()
    styles = [draw(6, 4, seed=seed).to(DEVICE) for seed in (1, 2)]
    most = 2 * x[0].numel()
    monkeypatch.setattr(_launch, "_MOST_ELEMENTS", most)

    def run(backend: str) -> list[torch.Tensor]:
        if op == "gate":
            result = gate_features(x, channels=3, backend=backend)
        else:
            result = stylize(x, *styles, num_groups=2, backend=backend)
        return [result, *torch.autograd.grad(result, x, torch.ones_like(result))]

    assert within_reach(x) is not x
    for found, expected in zip(run("triton"), run("reference"), strict=True):
        assert_close(found, expected)
        assert within_reach(found) is found
