import ast
import subprocess
import sys
import time
from pathlib import Path

import pytest

import tmapdiff
import tmapdiff.data

PACKAGE = Path(tmapdiff.__file__).parent
HEAVY = (
    "timm",
    "torchvision",
    "diffusers",
    "matplotlib",
    "h5py",
    "accelerate",
    "rich",
    "av",
    "transformers",
)


def run_python(code: str) -> str:
    command = [sys.executable, "-W", "error", "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("name", tmapdiff.__all__)
def test_every_public_name_loads_and_is_documented(name):
    value = getattr(tmapdiff, name)
    if name not in ("__version__", "PRESETS", "DECODERS"):
        assert value.__doc__


@pytest.mark.parametrize("package", [tmapdiff, tmapdiff.data])
def test_type_checkers_see_the_same_names(package):
    tree = ast.parse(Path(package.__file__).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {
        alias.asname: node.module
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


def test_import_loads_nothing_heavy_and_changes_nothing():
    loaded = run_python(
        "import sys, tmapdiff; print(*[m for m in sys.modules if '.' not in m], sep='\\n')"
    ).split()
    assert not set(HEAVY) & set(loaded)


def test_maps_need_neither_diffusers_nor_timm():
    loaded = run_python("import sys, tmapdiff.maps; print(*sys.modules, sep='\\n')").split()
    assert not {"diffusers", "timm", "matplotlib"} & set(loaded)


def test_model_names_do_not_load_timm_or_torchvision():
    loaded = run_python(
        "import sys\nfrom tmapdiff import MapDiffusionDecoder, IoUMapBuilder\n"
        "print(*sys.modules, sep='\\n')"
    ).split()
    # diffusers itself loads accelerate.
    assert not {"timm", "torchvision", "matplotlib", "h5py"} & set(loaded)


def test_import_is_as_quick_as_torch_s():
    def seconds(module: str) -> float:
        began = time.perf_counter()
        run_python(f"import {module}")
        return time.perf_counter() - began

    # The quickest of several: other work on the machine only ever adds time.
    pairs = [(seconds("torch"), seconds("tmapdiff")) for _ in range(4)]
    assert min(ours for _, ours in pairs) < min(torch for torch, _ in pairs) + 0.3


LEVELS = {  # a file may import from its own folder, and from lower levels
    "errors": 0,
    "_version": 0,
    "spinning": 0,
    "_core": 1,
    "_sharding": 2,
    "_checkpoints": 2,
    "_stopping": 1,
    "kernels": 4,
    "maps": 4,
    "losses": 4,
    "metrics": 5,
    "calibration": 5,
    "data": 5,
    "schedulers": 5,
    "layers": 5,
    "plots": 6,
    "models": 6,
    "video": 6,
    "provenance": 6,
    "conversion": 7,
    "inspection": 11,
    "evaluation": 7,
    "training": 8,
    "presets": 9,
    "migration": 10,
    "pipelines": 10,
    "corpus": 11,
    "demo": 11,
    "recipes": 11,
    "cli": 12,
    "__main__": 13,
}


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: p.stem)
def test_imports_point_one_way(path):
    home = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if home == "__init__":
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tmapdiff."):
            target = node.module.split(".")[1]
            assert target == home or LEVELS[target] < LEVELS[home], node.module


def test_no_assert_and_no_print_in_the_package():
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            assert not isinstance(node, ast.Assert), f"{path}:{node.lineno}"
            name = getattr(getattr(node, "func", None), "id", "")
            assert name != "print", f"{path}:{node.lineno}"


def test_errors_are_builtin_errors_too():
    from tmapdiff import errors

    for name, builtin in (
        ("ArgumentError", ValueError),
        ("ShapeError", ValueError),
        ("ConfigError", ValueError),
        ("AnnotationError", ValueError),
        ("FeatureError", ValueError),
        ("MissingFeatureError", KeyError),
        ("VideoError", ValueError),
        ("CheckpointError", ValueError),
        ("FileError", OSError),
        ("MissingDependencyError", ImportError),
    ):
        kind = getattr(errors, name)
        assert issubclass(kind, builtin)
        assert issubclass(kind, tmapdiff.TmapdiffError)
    assert str(errors.MissingFeatureError("no features of AAA")) == "no features of AAA"
