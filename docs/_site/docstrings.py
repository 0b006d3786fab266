"""Shape, Source and Example sections of docstrings, for the API reference.

An extension of Griffe. Google's style knows no sections `Shape` and `Source`, and Griffe takes
`Example` for a note: these become what it can render.
"""

import re
from typing import Any

import griffe

_SHAPE = re.compile(r"^Shape:\n((?:[ ]{4}.*\n?|\n(?=[ ]{4}))+)", re.MULTILINE)
_SOURCE = re.compile(r"^Source:[ ](.*(?:\n[ ]{4}.*)*)", re.MULTILINE)
_EXAMPLE = re.compile(r"^Example:$", re.MULTILINE)
_ITEM = re.compile(r"^- ([\w, ]+): ", re.MULTILINE)
_ARXIV = re.compile(r"arXiv (\d{4}\.\d{4,5})")
_DOI = re.compile(r"doi (10\.\d+/[^\s,;)]*[^\s,;).])")


class Docstrings(griffe.Extension):
    """Rewrites each docstring; an override without one gets that of what it overrides."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrite the docstring of a module, class, function or attribute."""
        if obj.docstring:
            obj.docstring.value = rewritten(obj.docstring.value)

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        """Let overrides inherit docstrings, as `inspect.getdoc` does."""
        modules = [pkg]
        for module in modules:  # which grows
            modules += [one for one in module.modules.values() if not one.is_alias]
            for owner in module.classes.values():
                if not owner.is_alias:
                    _inherit(owner)


def _inherit(owner: griffe.Class) -> None:
    for name, method in owner.functions.items():
        if not method.is_alias and not method.docstring:
            given = (base.members.get(name) for base in owner.mro())
            method.docstring = next((one.docstring for one in given if one and one.docstring), None)


def rewritten(text: str) -> str:
    """Docstring with sections that Griffe knows, and links to the papers."""
    text = _SHAPE.sub(_shape, text)
    text = _SOURCE.sub(_source, text)
    return _EXAMPLE.sub("Examples:", text)


def _shape(match: re.Match[str]) -> str:
    lines = [line.removeprefix("    ") for line in match[1].rstrip("\n").split("\n")]
    items = _ITEM.sub(_names, "\n".join(lines))
    return f"**Shape**\n\n{items}\n"


def _names(match: re.Match[str]) -> str:
    names = ", ".join(f"`{name.strip()}`" for name in match[1].split(","))
    return f"- {names}: "


def _source(match: re.Match[str]) -> str:
    said = " ".join(line.strip() for line in match[1].split("\n"))
    said = _ARXIV.sub(r"[arXiv \1](https://arxiv.org/abs/\1)", said)
    said = _DOI.sub(r"[doi \1](https://doi.org/\1)", said)
    return f"**Source**\n\n{said}"
