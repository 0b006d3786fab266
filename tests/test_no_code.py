"""No file makes the library run code: what could do that is not used."""

import ast
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

import tmapdiff

SOURCES = sorted(Path(tmapdiff.__file__).parent.rglob("*.py"))
BANNED_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}
# Called as such, or as the last part of a name: `torch.load` and `load` from it alike.
BANNED_CALLS = {"eval", "exec", "execfile", "system", "popen", "unsafe_load", "full_load"}


def dangers(source: str) -> Iterator[str]:
    """Give what in a source could run code that comes from a file."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = getattr(node, "module", None)
            names = [module] if module else [alias.name for alias in node.names]
            yield from (f"import {one}" for one in names if one.split(".")[0] in BANNED_MODULES)
        if not isinstance(node, ast.Call):
            continue
        name, given = ast.unparse(node.func), {one.arg: one.value for one in node.keywords}
        said = {arg: ast.unparse(value) for arg, value in given.items() if arg}
        last = name.split(".")[-1]
        if last in BANNED_CALLS and not name.endswith(".eval"):  # of a model
            yield name
        if name in ("eval", "exec", "compile", "__import__"):
            yield name
        if name == "torch.load" and said.get("weights_only") != "True":
            yield "torch.load without weights_only=True"
        if name in ("np.load", "numpy.load") and said.get("allow_pickle") != "False":
            yield "np.load without allow_pickle=False"
        if last == "read_array" and said.get("allow_pickle") != "False":
            yield "read_array without allow_pickle=False"
        if name in ("yaml.load", "yaml.load_all"):
            yield name
        if said.get("shell", "False") != "False":
            yield f"{name} with a shell"
        if said.get("trust_remote_code", "False") != "False":
            yield f"{name} with trust_remote_code"
        if said.get("weights_only") == "False" or said.get("allow_pickle") == "True":
            yield f"{name} of pickles"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_nothing_of_the_kind_is_used(path):
    assert not list(dangers(path.read_text()))


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "import os, shelve",
        "eval(text)",
        "exec(text)",
        "__import__(name)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=safe)",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "np.lib.format.read_array(file)",
        "yaml.load(text, Loader=yaml.Loader)",
        "yaml.unsafe_load(text)",
        "os.system(text)",
        "subprocess.run(text, shell=True)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
    ],
)
def test_each_of_them_would_be_found(source):
    assert list(dangers(f"def f():\n{textwrap.indent(source, '    ')}"))


def test_what_is_harmless_is_not():
    source = """
    import json
    model.eval()
    torch.load(path, map_location="cpu", weights_only=True)
    np.load(path, allow_pickle=False)
    yaml.safe_load(text)
    subprocess.run(["ffmpeg", name])
    """
    assert not list(dangers(textwrap.dedent(source)))
