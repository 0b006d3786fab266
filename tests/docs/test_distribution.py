import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import tmapdiff

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def distribution(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    # Without isolation: it would download hatchling.
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    return folder


def test_wheel_has_the_package_and_pins_nothing(distribution):
    (wheel,) = distribution.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (metadata,) = (archive.read(name).decode() for name in names if name.endswith("/METADATA"))
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "tmapdiff").rglob("*.py")}
    assert modules | {"tmapdiff/py.typed"} <= set(names)
    assert not [name for name in names if not name.startswith(("tmapdiff/", "tmapdiff-"))]
    required = [line for line in metadata.splitlines() if line.startswith("Requires-Dist")]
    assert required
    assert not [line for line in required if "==" in line.split(";")[0]]
    assert f"Version: {tmapdiff.__version__}" in metadata.splitlines()


def test_sdist_has_what_the_tests_need(distribution):
    (sdist,) = distribution.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = ["README.md", "LICENSE", "CITATION.cff", "mkdocs.yml", "docs/make_pictures.py"]
    wanted += ["tests/conftest.py", "examples/train_charades.py", "benchmarks/tables.py"]
    assert [name for name in wanted if name not in names] == []
