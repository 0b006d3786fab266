"""Every name of code and every file that the documentation mentions exists."""

import importlib
import pkgutil
import re
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

import tmapdiff

ROOT = Path(__file__).parents[2]
PAGES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("**/*.md"))
# Records of what was done at a time: names in them may have changed since.
HISTORY = ("docs/research-log.md", "docs/results/")
# Names in code font that are not ours, and a page that is about other libraries' names.
FOREIGN = {"DDIMScheduler"}
OTHERS = ("docs/migration.md",)
NAME = r"tmapdiff(?:\.\w+)+|[A-Z]\w*[a-z]\w*(?:\.\w+)*"


def in_code(page: str) -> list[str]:
    text = re.sub(r"^```.*?^```", "", (ROOT / page).read_text(), flags=re.DOTALL | re.MULTILINE)
    return re.findall(r"`([^`\n]+)`", text)


def modules() -> list:
    names = [found.name for found in pkgutil.walk_packages(tmapdiff.__path__, "tmapdiff.")]
    # What needs a GPU's compiler, or Gradio, cannot be imported everywhere.
    absent = [] if find_spec("gradio") else ["tmapdiff.demo.page", "tmapdiff.demo.visits"]
    names = [name for name in names if not name.endswith(".triton") and name not in absent]
    return [importlib.import_module(name) for name in names]


def resolves(name: str) -> bool:
    """Whether `name`, such as `MapGrid.mask`, is something of ours."""
    first, *rest = name.split(".")
    places = (
        [tmapdiff] if first == "tmapdiff" else [one for one in modules() if hasattr(one, first)]
    )
    for place in places:
        value = place if first == "tmapdiff" else getattr(place, first)
        if _has(value, rest):
            return True
    return False


def _has(value, rest) -> bool:
    for part in rest:
        if not hasattr(value, part):
            fields = getattr(value, "__dataclass_fields__", {})
            source = getattr(value, "__init__", None)
            # An attribute that the constructor sets, or an argument.
            names = getattr(getattr(source, "__wrapped__", source), "__code__", None)
            return part in fields or (
                names is not None and part in {*names.co_varnames, *names.co_names}
            )
        value = getattr(value, part)
    return True


@pytest.mark.parametrize("page", [page for page in PAGES if not page.startswith(HISTORY)])
def test_names_of_code_exist(page):
    wrong = []
    for code in in_code(page):
        if re.search(r"\.(csv|json|jsonl|md|py)$", code):
            continue  # a file
        name = code.split("(")[0]
        named = r"tmapdiff(?:\.\w+)+" if page in OTHERS else NAME
        if re.fullmatch(named, name) and name.split(".")[0] not in FOREIGN and not resolves(name):
            wrong.append(code)
    assert wrong == []


@pytest.mark.parametrize("page", PAGES)
def test_files_exist(page):
    found = re.findall(
        r"(?<![\w/.])((?:tmapdiff|tests|benchmarks|examples|docs)/[\w/.-]+\.\w+)",
        (ROOT / page).read_text(),
    )
    assert [name for name in found if not (ROOT / name).exists()] == []


def test_variables_of_the_environment_are_those_of_the_code():
    def named_in(*patterns: str) -> set[str]:
        files = [path for pattern in patterns for path in ROOT.glob(pattern)]
        return set(re.findall(r"TMAPDIFF_[A-Z_]+", "".join(path.read_text() for path in files)))

    shown = named_in("README.md", "docs/**/*.md")
    assert named_in("tmapdiff/**/*.py") - shown == set()
    assert shown - named_in("tmapdiff/**/*.py", "tests/**/*.py") == set()


def rows_without_a_head(text: str) -> list[str]:
    blocks = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    return [block for block in blocks if not re.match(r".*\n\|(?: -+ \|)+\n", block)]


@pytest.mark.parametrize("page", ["README.md", *PAGES])
def test_tables_are_whole(page):
    if page.endswith("_template.md"):
        pytest.skip("its rows are filled in")
    assert rows_without_a_head((ROOT / page).read_text()) == []


def test_a_row_that_stands_alone_is_noticed():
    table = "| a | b |\n| --- | --- |\n| 1 | 2 |\n"
    assert rows_without_a_head(table) == []
    assert rows_without_a_head(f"{table}\n| 3 | 4 |\n") == ["| 3 | 4 |\n"]


def test_the_paper_s_fields_exist():
    words = set(re.findall(r"\w+", "".join(path.read_text() for path in ROOT.glob("**/*.py"))))
    text = (ROOT / "docs" / "paper.md").read_text()
    fields = re.findall(r"`([a-z]\w*_\w+)`", text)
    assert fields
    assert [field for field in fields if field not in words] == []


@pytest.mark.parametrize("name", ["MapGrid.masks", "MapGird2", "tmapdiff.mapss", "Trainer.nothing"])
def test_a_wrong_name_is_noticed(name):
    assert not resolves(name)


@pytest.mark.parametrize(
    "name", ["MapGrid.num_clips", "tmapdiff.presets", "MapScheduler.alphas_cumprod", "MS2DTAN"]
)
def test_a_right_name_is_found(name):
    assert resolves(name)


def numbers_of(row):
    return re.findall(r"[-+]?\d+\.\d ± \d+\.\d", row)


def test_numbers_of_the_results_are_those_of_the_runs():
    rows = [
        numbers_of(line)
        for path in ROOT.glob("docs/results/*/README.md")
        for line in path.read_text().splitlines()
    ]
    shown = re.findall(r"^\|.* ± .*$", (ROOT / "docs" / "results" / "index.md").read_text(), re.M)
    shown += re.findall(r"^\|.* ± .*$", (ROOT / "README.md").read_text(), re.M)
    assert len(shown) > 20
    for line in shown:
        # Columns may be left out, in order.
        assert any(all(one in left for one in numbers_of(line)) for left in map(iter, rows)), line


def test_the_citation_names_the_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == tmapdiff.__version__
    assert citation["license"] == "Apache-2.0"
