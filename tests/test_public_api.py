import ast
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

import tmapdiff
import tmapdiff.data

PACKAGE = Path(tmapdiff.__file__).parent
ROOT = PACKAGE.parent
HEAVY = {"timm", "torchvision", "diffusers", "matplotlib", "h5py", "accelerate", "rich", "av"}
HEAVY |= {"transformers"}


def run_python(code: str) -> str:
    command = [sys.executable, "-W", "error", "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_every_public_name_loads_and_is_documented():
    for name in tmapdiff.__all__:
        value = getattr(tmapdiff, name)
        if name not in ("__version__", "PRESETS", "DECODERS"):
            assert value.__doc__, name


@pytest.mark.parametrize("package", [tmapdiff, tmapdiff.data])
def test_type_checkers_see_the_same_names(package):
    tree = ast.parse(Path(package.__file__).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {
        alias.asname or alias.name: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    name = package.__name__
    assert seen == {one: f"{name}.{home}" for one, home in package._HOMES.items()}
    assert all(getattr(package, one) for one in package.__all__)


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'tmapdiff' has no attribute 'MapGird'"):
        tmapdiff.MapGird  # noqa: B018
    assert not hasattr(tmapdiff, "anything")
    assert set(tmapdiff.__all__) <= set(dir(tmapdiff))


@pytest.mark.process
@pytest.mark.parametrize("module", ["", ".maps", ".data", ".models"])
def test_imports_load_nothing_heavy(module):
    loaded = run_python(f"import sys, tmapdiff{module}; print(*sys.modules, sep='\\n')").split()
    # diffusers itself loads some of them.
    heavy = {"timm", "torchvision", "matplotlib", "h5py"} if module == ".models" else HEAVY
    assert not heavy & set(loaded)


@pytest.mark.process
def test_import_is_as_quick_as_torch_s():
    def seconds(module: str) -> float:
        began = time.perf_counter()
        run_python(f"import {module}")
        return time.perf_counter() - began

    # The fastest of several, as other load on the machine only adds time.
    pairs = [(seconds("torch"), seconds("tmapdiff")) for _ in range(4)]
    assert min(ours for _, ours in pairs) < min(torch for torch, _ in pairs) + 0.3


# The drawing of the rooms: a file may import from its own room and from those on lower floors.
PAGE = (ROOT / "docs" / "contributing.md").read_text()
DRAWING = re.search(r"^```text\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)[1]
FLOORS = [line.split() for line in reversed(DRAWING.splitlines())]
LEVELS = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}


def test_imports_point_one_way():
    rooms = {path.stem for path in PACKAGE.iterdir() if path.suffix in ("", ".py")}
    assert rooms - {"__init__", "__pycache__"} == LEVELS.keys()
    for path in sorted(PACKAGE.rglob("*.py")):
        home = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(path.read_text())):
            module = getattr(node, "module", None) or ""
            if home != "__init__" and module.startswith("tmapdiff."):
                target = module.split(".")[1]
                assert target == home or LEVELS[target] < LEVELS[home], f"{path}: {module}"


def test_examples_and_pages_use_public_names_only():
    pages = [*ROOT.glob("examples/**/*.py"), *ROOT.glob("docs/**/*.md"), ROOT / "README.md"]
    private = {
        path.name: found
        for path in pages
        if (found := re.findall(r"tmapdiff\S*\._\w+|import _\w+", path.read_text()))
    }
    assert private == {}


def test_errors_are_builtin_errors_too():
    from tmapdiff import errors

    builtins = {
        ValueError: "Argument Shape Config Annotation Feature Video Checkpoint",
        KeyError: "MissingFeature",
        OSError: "File",
        ImportError: "MissingDependency",
    }
    for builtin, names in builtins.items():
        for name in names.split():
            kind = getattr(errors, f"{name}Error")
            assert issubclass(kind, builtin)
            assert issubclass(kind, tmapdiff.TmapdiffError)
    raised = [value for value in vars(errors).values() if isinstance(value, type)]
    public = {value.__name__ for value in raised if not value.__name__.startswith("_")}
    assert public <= set(tmapdiff.__all__)
    assert str(errors.MissingFeatureError("no features of AAA")) == "no features of AAA"
