"""No file makes the library run code: what could do that is not used."""

import ast
from collections.abc import Iterator
from pathlib import Path

import tmapdiff

SOURCES = sorted(Path(tmapdiff.__file__).parent.rglob("*.py"))
BANNED_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}
BANNED_CALLS = {"eval", "exec", "compile", "__import__", "yaml.load", "yaml.load_all"}
# As the last part of a name, too: `os.system` and `system` from it alike.
BANNED_LAST = {"exec", "execfile", "system", "popen", "unsafe_load", "full_load"}
# Keywords that a call has to give, and those that no call may give otherwise.
NEEDED = {
    "torch.load": ("weights_only", "True"),
    "np.load": ("allow_pickle", "False"),
    "numpy.load": ("allow_pickle", "False"),
    "read_array": ("allow_pickle", "False"),
}
FIXED = {"weights_only": "True", "allow_pickle": "False", "shell": "False"}
FIXED |= {"trust_remote_code": "False"}


def dangers(source: str) -> Iterator[str]:
    """Give what in a source could run code that comes from a file."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = getattr(node, "module", None)
            names = [module] if module else [alias.name for alias in node.names]
            yield from (f"import {one}" for one in names if one.split(".")[0] in BANNED_MODULES)
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        last = name.split(".")[-1]
        given = {one.arg: ast.unparse(one.value) for one in node.keywords if one.arg}
        if name in BANNED_CALLS or last in BANNED_LAST:
            yield name
        keyword, needed = NEEDED.get(name) or NEEDED.get(last) or ("", None)
        if given.get(keyword) != needed:
            yield f"{name} without {keyword}={needed}"
        for keyword, only in FIXED.items():
            if given.get(keyword, only) != only:
                yield f"{name} with {keyword}={given[keyword]}"


def test_nothing_of_the_kind_is_used():
    found = {path: list(dangers(path.read_text())) for path in SOURCES}
    assert {path: what for path, what in found.items() if what} == {}
    assert len(found) > 100


def test_each_of_them_would_be_found():
    for source in (
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
    ):
        assert list(dangers(f"def f():\n    {source}")), source
