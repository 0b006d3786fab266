import json
import pkgutil
import time

import pytest
import torch
from helpers.assertions import refuses

from tmapdiff import kernels
from tmapdiff.errors import ConfigError
from tmapdiff.kernels import _dispatch
from tmapdiff.kernels._dispatch import (
    BACKEND_VARIABLE,
    CACHE_VARIABLE,
    OPERATIONS,
    choose,
    choose_fastest,
)

USABLE = {"quick": "they are on paper", "plain": None, "slow": None}
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.delenv(BACKEND_VARIABLE, raising=False)
    monkeypatch.setattr(_dispatch, "_measured", {})
    monkeypatch.setattr(_dispatch, "OPERATIONS", ("op", "other"))
    _dispatch._parsed.cache_clear()


def test_argument_comes_before_environment_before_order(monkeypatch) -> None:
    monkeypatch.setenv(BACKEND_VARIABLE, "slow")
    assert choose("op", USABLE) == "slow"
    assert choose("op", USABLE, "plain") == "plain"


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("op=slow", "slow"),
        (" op = slow , other=x", "slow"),
        ("other=slow", "plain"),
        ("slow,op=plain", "plain"),
        ("plain,op=slow", "slow"),
        ("reference", "plain"),  # of other operations
        ("", "plain"),
    ],
)
def test_environment_names_all_operations_or_some(setting, expected, monkeypatch) -> None:
    monkeypatch.setenv(BACKEND_VARIABLE, setting)
    assert choose("op", USABLE) == expected


def test_refuses_what_there_is_not(monkeypatch) -> None:
    text = "kernels.op: expected backend to be one of quick, plain, slow, got 'fast'."
    with refuses(ConfigError, text):
        choose("op", USABLE, "fast")
    with refuses(ConfigError, "supports, got others: they are on paper."):
        choose("op", USABLE, "quick")
    monkeypatch.setenv(BACKEND_VARIABLE, "op=fast")
    with refuses(ConfigError, "expected TMAPDIFF_BACKEND to be one of quick, plain, slow"):
        choose("op", USABLE)
    monkeypatch.setenv(BACKEND_VARIABLE, "op=")
    with refuses(ConfigError, "expected TMAPDIFF_BACKEND like 'reference' or", "got 'op='"):
        choose("op", USABLE)
    monkeypatch.setenv(BACKEND_VARIABLE, "op=slow,opp=plain")
    with refuses(ConfigError, "expected TMAPDIFF_BACKEND to name one of op, other, got 'opp'."):
        choose("op", USABLE)


def test_operations_are_the_packages_of_kernels() -> None:
    packages = [one.name for one in pkgutil.iter_modules(kernels.__path__) if one.ispkg]
    assert sorted(OPERATIONS) == sorted(packages)


class Runner:
    """Backends, one of them slow, with counts of their runs."""

    def __init__(self, slow: str) -> None:
        self.slow = slow
        self.runs = 0

    def __call__(self, name: str) -> None:
        self.runs += 1
        time.sleep(0.02 if name == self.slow else 0)

    def choose(self, key: str = "key", backend: str | None = None) -> str:
        usable = {"one": None, "two": None}
        return choose_fastest(
            "op", usable, backend, candidates=["one", "two"], key=key, run=self, device=CPU
        )


@pytest.mark.parametrize(("slow", "fast"), [("one", "two"), ("two", "one")])
def test_the_clock_decides_once(slow, fast) -> None:
    run = Runner(slow)
    assert run.choose() == fast
    runs = run.runs
    assert runs > 0
    run.slow = fast
    assert run.choose() == fast
    assert run.runs == runs
    assert run.choose(key="another") == slow
    assert run.runs > runs


def test_who_asks_needs_no_clock(monkeypatch) -> None:
    run = Runner("two")
    assert run.choose(backend="two") == "two"
    monkeypatch.setenv(BACKEND_VARIABLE, "two")
    assert run.choose() == "two"
    assert run.runs == 0


def test_choices_outlive_the_process(monkeypatch, tmp_path) -> None:
    run = Runner("one")
    assert run.choose() == "two"
    monkeypatch.setattr(_dispatch, "_measured", {})  # as in another process
    run.slow, run.runs = "two", 0
    assert run.choose() == "two"
    assert run.runs == 0
    kept = json.loads((tmp_path / "cache" / "kernels.json").read_text())
    assert list(kept.values()) == ["two"]


def test_what_was_measured_of_other_code_is_measured_anew(monkeypatch) -> None:
    run = Runner("one")
    assert run.choose() == "two"
    run.slow = "two"
    monkeypatch.setattr(_dispatch, "_kernels_digest", lambda: "other code")
    _dispatch._machine.cache_clear()
    try:
        assert run.choose() == "one"
    finally:
        _dispatch._machine.cache_clear()


def test_another_process_keeps_what_it_measured(tmp_path, monkeypatch) -> None:
    run = Runner("one")
    run.choose("first")
    path = tmp_path / "cache" / "kernels.json"
    (known,) = json.loads(path.read_text())
    path.write_text(json.dumps({known: "one", "of another": "two"}))
    run.choose("second")
    kept = json.loads(path.read_text())
    assert kept[known] == "one"
    assert kept["of another"] == "two"
    assert len(kept) == 3


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"known": "nonsense"}'])
def test_a_damaged_file_is_measured_anew(text, tmp_path, monkeypatch) -> None:
    Runner("one").choose()
    path = tmp_path / "cache" / "kernels.json"
    (known,) = json.loads(path.read_text())
    path.write_text(text.replace("known", known))
    monkeypatch.setattr(_dispatch, "_measured", {})
    assert Runner("two").choose() == "one"


def test_no_place_to_keep_choices_is_no_error(tmp_path, monkeypatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "file" / "cache"))
    assert Runner("one").choose() == "two"


def test_deterministic_algorithms_ask_no_clock() -> None:
    run = Runner("one")
    torch.use_deterministic_algorithms(True)
    try:
        assert run.choose() == "one"
    finally:
        torch.use_deterministic_algorithms(False)
    assert run.runs == 0


def test_what_was_measured_counts_where_nothing_may_be(monkeypatch) -> None:
    """As during CUDA graph capture, after a run that measured."""
    run = Runner("one")
    assert run.choose() == "two"
    monkeypatch.setattr(_dispatch, "_may_measure", lambda _: False)
    runs = run.runs
    assert run.choose() == "two"
    assert run.choose(key="unknown") == "one"  # the first
    assert run.runs == runs


def test_trials_leave_no_trace_in_activation_checkpoints() -> None:
    """Checkpointing compares the numbers of saved tensors in both passes."""

    def work(x: torch.Tensor) -> torch.Tensor:
        choose_fastest(
            "op",
            {"one": None, "two": None},
            None,
            candidates=["one", "two"],
            key="key",
            run=lambda _: torch.autograd.grad(x.exp().sum(), x),
            device=CPU,
        )
        return x.sin()

    x = torch.ones(3, requires_grad=True)
    result = torch.utils.checkpoint.checkpoint(work, x, use_reentrant=False)
    (gradient,) = torch.autograd.grad(result.sum(), x)
    torch.testing.assert_close(gradient, x.cos())
