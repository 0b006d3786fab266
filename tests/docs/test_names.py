"""Every name of code and every file that the documentation mentions exists."""

import functools
import importlib
import pkgutil
import re
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

import yaml

import tmapdiff

ROOT = Path(__file__).parents[2]
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text()
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]
}
# Records of what was done at a time: names in them may have changed since.
HISTORY = ("docs/research-log.md", "docs/results/")
# Names in code font that are not ours, and a page that is about other libraries' names.
FOREIGN = {"DDIMScheduler"}
OTHERS = ("docs/migration.md",)
NAME = r"tmapdiff(?:\.\w+)+|[A-Z]\w*[a-z]\w*(?:\.\w+)*"


@functools.cache
def modules() -> list:
    names = [found.name for found in pkgutil.walk_packages(tmapdiff.__path__, "tmapdiff.")]
    # What needs a GPU's compiler, or Gradio, cannot be imported everywhere.
    absent = [] if find_spec("gradio") else ["tmapdiff.demo.page", "tmapdiff.demo.visits"]
    names = [name for name in names if not name.endswith(".triton") and name not in absent]
    return [importlib.import_module(name) for name in names]


def resolves(name: str) -> bool:
    """Whether `name`, such as `MapGrid.mask`, is something of ours."""
    first, *rest = name.split(".")
    if first == "tmapdiff":
        return _has(tmapdiff, rest)
    return any(_has(getattr(one, first), rest) for one in modules() if hasattr(one, first))


def _has(value, rest) -> bool:
    for part in rest:
        if not hasattr(value, part):
            # An attribute that the constructor sets, or an argument.
            source = getattr(value, "__init__", None)
            code = getattr(getattr(source, "__wrapped__", source), "__code__", None)
            fields = {*getattr(value, "__dataclass_fields__", {})}
            return part in fields | ({*code.co_varnames, *code.co_names} if code else set())
        value = getattr(value, part)
    return True


def wrong_names(page: str, text: str) -> list[str]:
    ours = re.compile(r"tmapdiff(?:\.\w+)+" if page in OTHERS else NAME)
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    names = {
        code.split("(")[0]
        for code in re.findall(r"`([^`\n]+)`", text)
        if not re.search(r"\.(csv|json|jsonl|md|py)$", code)  # a file
    }
    named = {one for one in names if ours.fullmatch(one) and one.split(".")[0] not in FOREIGN}
    return [one for one in sorted(named) if not resolves(one)]


def test_names_of_code_exist():
    pages = {page: text for page, text in PAGES.items() if not page.startswith(HISTORY)}
    wrong = {page: wrong_names(page, text) for page, text in pages.items()}
    assert {page: names for page, names in wrong.items() if names} == {}


def test_wrong_names_are_noticed_and_right_ones_found():
    wrong = ["MapGird2", "MapGrid.masks", "Trainer.nothing", "tmapdiff.mapss"]
    right = ["MapGrid.num_clips", "tmapdiff.presets", "MapScheduler.alphas_cumprod", "MS2DTAN"]
    assert wrong_names("page", "".join(f"`{one}`" for one in wrong + right)) == wrong


def test_files_exist():
    place = r"(?<![\w/.])((?:tmapdiff|tests|benchmarks|examples|docs)/[\w/.-]+\.\w+)"
    for page, text in PAGES.items():
        assert [one for one in re.findall(place, text) if not (ROOT / one).exists()] == [], page


def test_variables_of_the_environment_are_those_of_the_code():
    def named_in(texts: Iterable[str]) -> set[str]:
        return set(re.findall(r"TMAPDIFF_[A-Z_]+", "".join(texts)))

    package, tests = (
        named_in(path.read_text() for path in ROOT.glob(f"{folder}/**/*.py"))
        for folder in ("tmapdiff", "tests")
    )
    assert package <= named_in(PAGES.values()) <= package | tests


def rows_without_a_head(text: str) -> list[str]:
    blocks = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    return [block for block in blocks if not re.match(r".*\n\|(?: -+ \|)+\n", block)]


def test_tables_are_whole():
    for page, text in PAGES.items():
        if not page.endswith("_template.md"):  # its rows are filled in
            assert rows_without_a_head(text) == [], page


def test_a_row_that_stands_alone_is_noticed():
    table = "| a | b |\n| --- | --- |\n| 1 | 2 |\n"
    assert rows_without_a_head(table) == []
    assert rows_without_a_head(f"{table}\n| 3 | 4 |\n") == ["| 3 | 4 |\n"]


def test_the_paper_s_fields_exist():
    words = set(
        re.findall(r"\w+", "".join(path.read_text() for path in ROOT.glob("tmapdiff/**/*.py")))
    )
    fields = re.findall(r"`([a-z]\w*_\w+)`", PAGES["docs/paper.md"])
    assert fields
    assert [field for field in fields if field not in words] == []


def numbers_of(row):
    return re.findall(r"[-+]?\d+\.\d ± \d+\.\d", row)


def test_numbers_of_the_results_are_those_of_the_runs():
    rows = [
        numbers_of(line)
        for page, text in PAGES.items()
        if re.fullmatch("docs/results/.*/README.md", page)
        for line in text.splitlines()
    ]
    shown = re.findall(r"^\|.* ± .*$", PAGES["docs/results/index.md"] + PAGES["README.md"], re.M)
    assert len(shown) > 20
    for line in shown:
        # Columns may be left out, in order.
        assert any(all(one in left for one in numbers_of(line)) for left in map(iter, rows)), line


def test_the_citation_names_the_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == tmapdiff.__version__
    assert citation["license"] == "Apache-2.0"
