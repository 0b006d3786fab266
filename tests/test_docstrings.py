"""Docstrings of public classes, functions and methods match the code.

They name all parameters and no others, and only errors that exist; their examples work. A parameter
is named by an entry of `Args`, `Attributes` or `Shape`, or in code font. Methods may rely on their
class's docstring, and overrides on that of the overridden method.
"""

import builtins
import doctest
import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

import tmapdiff
import tmapdiff.errors

NAMES = r"\*{0,2}\w+(?:, \*{0,2}\w+)*"
ENTRY = re.compile(rf"^ {{4}}(?:- )?({NAMES}):", re.MULTILINE)
SECTION = re.compile(
    r"^(Args|Attributes|Shape|Raises|Returns|Yields|Source|Example):", re.MULTILINE
)
NOT_FOR_IMPORT = {"cli", "__main__"}


def public_modules() -> Iterator[ModuleType]:
    for found in pkgutil.iter_modules(tmapdiff.__path__, "tmapdiff."):
        name = found.name.split(".")[1]
        if name not in NOT_FOR_IMPORT and not name.startswith("_"):
            yield importlib.import_module(found.name)
    kernels = importlib.import_module("tmapdiff.kernels")
    for found in pkgutil.iter_modules(kernels.__path__, "tmapdiff.kernels."):
        if found.ispkg:
            yield importlib.import_module(found.name)


def public_names(module: ModuleType) -> list[str]:
    if hasattr(module, "__all__"):
        return list(module.__all__)
    home = {name: getattr(value, "__module__", None) for name, value in vars(module).items()}
    return [name for name in home if home[name] == module.__name__ and not name.startswith("_")]


def public_methods(owner: type) -> Iterator[tuple[str, Any]]:
    for name in dir(owner):
        method = inspect.getattr_static(owner, name)
        method = getattr(method, "__func__", method)  # of a class or static method
        is_public = name == "__call__" or not name.startswith("_")
        # Methods of other libraries, and overrides of these, are documented there.
        home = getattr(method, "__module__", None) or ""
        if is_public and inspect.isfunction(method) and re.match(r"tmapdiff\.(?!_)", home):
            yield name, getattr(owner, name)  # a class method too: its override has no docstring


@pytest.fixture(scope="module")
def objects() -> dict[str, tuple[Any, type | None]]:
    """Classes, functions and methods by name, each method with its class."""
    found: dict[str, tuple[Any, type | None]] = {}
    for module in public_modules():
        for name in public_names(module):
            value = getattr(module, name)
            if inspect.isfunction(value) or inspect.isclass(value):
                found[f"{module.__name__}.{name}"] = (value, None)
            if inspect.isclass(value):
                for method_name, method in public_methods(value):
                    found[f"{module.__name__}.{name}.{method_name}"] = (method, value)
    return found


def parameters(value: Any) -> set[str]:
    is_protocol = getattr(value, "_is_protocol", False)
    if is_protocol or (inspect.isclass(value) and issubclass(value, Exception)):
        return set()  # not created by users
    names = inspect.signature(value).parameters
    return {name for name in names if name != "self" and not name.startswith("_")}


def entries(docstring: str, *sections: str) -> set[str]:
    parts = SECTION.split(docstring)
    texts = dict(zip(parts[1::2], parts[2::2], strict=True))
    lines = [names for one in sections for names in ENTRY.findall(texts.get(one, ""))]
    return {name.strip(" *") for line in lines for name in line.split(",")}


def not_named(value: Any, owner: type | None = None) -> set[str]:
    docstring = inspect.getdoc(value) or ""
    named = set(re.findall(r"`\*{0,2}(\w+)`", docstring))
    for one in (docstring, inspect.getdoc(owner) or "" if owner else ""):
        named |= entries(one, "Args", "Attributes", "Shape")
    return parameters(value) - named - {"cls"}


def not_there(value: Any) -> set[str]:
    return entries(inspect.getdoc(value) or "", "Args") - parameters(value)


def not_errors(value: Any) -> set[str]:
    def is_error(name: str) -> bool:
        found = getattr(tmapdiff.errors, name, None) or getattr(builtins, name, None)
        return inspect.isclass(found) and issubclass(found, BaseException)

    return {name for name in entries(inspect.getdoc(value) or "", "Raises") if not is_error(name)}


def test_docstrings_name_the_parameters_and_no_others_and_errors_that_exist(objects):
    for what in (not_named, lambda value, _: not_there(value), lambda value, _: not_errors(value)):
        wrong = {name: what(*found) for name, found in objects.items()}
        assert {name: names for name, names in wrong.items() if names} == {}
    assert len(objects) > 300
    seen = {"maps.MapGrid", "maps.MapGrid.mask", "kernels.gate.gate_features"}
    seen |= {"losses.get_objective", "data.Vocabulary.load", "demo.launch_demo"}
    assert {f"tmapdiff.{name}" for name in seen} <= objects.keys()


def wrong_examples(value: Any) -> str:
    scope = dict(vars(importlib.import_module(value.__module__)))
    report: list[str] = []
    for test in doctest.DocTestFinder(recurse=False).find(value, value.__name__, globs=scope):
        doctest.DocTestRunner().run(test, out=report.append)
    return "".join(report)


def test_examples_give_what_they_show(objects):
    ran = 0
    for value in {id(value): value for value, _ in objects.values()}.values():
        if ">>> " in (inspect.getdoc(value) or ""):
            assert wrong_examples(value) == ""
            ran += 1
    assert ran > 15


def wrong(first: int, *rest: int, second: int = 0) -> None:
    """Take `first`.

    Args:
        *rest: Some, with
            third: A line that goes on.
        gone: It was there once.

    Raises:
        rest: It is no error.

    Example:
        >>> 1 + 1
        3
    """


def test_what_is_wrong_is_noticed(monkeypatch):
    assert not_named(wrong) == {"second"}
    assert not_there(wrong) == {"gone"}
    assert not_errors(wrong) == {"rest"}
    monkeypatch.setattr(wrong, "__module__", "math")
    assert "Expected:\n    3\nGot:\n    2\n" in wrong_examples(wrong)
