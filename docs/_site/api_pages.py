"""Make the pages of the API reference, one a module, in the order the data flows.

A hook of MkDocs: it replaces the entry `API: api/` of `nav` in mkdocs.yml. A module that is not in
`ORDER` comes after those of its package.
"""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
PLACE = "api/"

ORDER = (
    "tmapdiff.maps",
    "tmapdiff.maps.grid",
    "tmapdiff.maps.overlap",
    "tmapdiff.maps.iou",
    "tmapdiff.maps.multiscale",
    "tmapdiff.maps.moments",
    "tmapdiff.maps.expected_hits",
    "tmapdiff.maps.saliency",
    "tmapdiff.plots",
    "tmapdiff.video",
    "tmapdiff.data",
    "tmapdiff.data.annotations",
    "tmapdiff.data.charades",
    "tmapdiff.data.didemo",
    "tmapdiff.data.activitynet",
    "tmapdiff.data.moment_jsonl",
    "tmapdiff.data.synthetic",
    "tmapdiff.data.features",
    "tmapdiff.data.timeline",
    "tmapdiff.data.words",
    "tmapdiff.data.dataset",
    "tmapdiff.schedulers",
    "tmapdiff.schedulers.map_scheduler",
    "tmapdiff.layers",
    "tmapdiff.layers.stylization",
    "tmapdiff.layers.conditioning",
    "tmapdiff.layers.gated_conv",
    "tmapdiff.layers.attention",
    "tmapdiff.layers.norm",
    "tmapdiff.kernels",
    "tmapdiff.losses",
    "tmapdiff.models",
    "tmapdiff.models.encoder",
    "tmapdiff.models.map_decoders",
    "tmapdiff.models.decoder",
    "tmapdiff.models.map_localizer",
    "tmapdiff.models.protocols",
    "tmapdiff.models.localizer",
    "tmapdiff.models.ms2dtan",
    "tmapdiff.presets",
    "tmapdiff.training",
    "tmapdiff.evaluation",
    "tmapdiff.pipelines",
    "tmapdiff.metrics",
    "tmapdiff.calibration",
    "tmapdiff.provenance",
    "tmapdiff.errors",
)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the pages into the navigation."""
    for entry in config.nav or []:
        if isinstance(entry, dict) and PLACE in entry.values():
            (title,) = entry
            entry[title] = [f"{PLACE}index.md", *_navigation(_load())]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages."""
    package = _load()
    files.append(File.generated(config, f"{PLACE}index.md", content=overview(package)))
    for module in public_modules(package):
        page = File.generated(config, page_of(module), content=module_page(module))
        files.append(page)
    return files


def _load() -> griffe.Module:
    package = griffe.load("tmapdiff", search_paths=[ROOT], resolve_aliases=True)
    assert isinstance(package, griffe.Module)
    return package


def public_modules(package: griffe.Module) -> list[griffe.Module]:
    """All modules but private ones and those that define nothing and say nothing, in order."""

    def place(module: griffe.Module) -> tuple[Any, ...]:
        parts = module.path.split(".")
        parents = [".".join(parts[: length + 1]) for length in range(1, len(parts))]
        last = len(ORDER)
        return tuple((ORDER.index(one) if one in ORDER else last, one) for one in parents)

    return sorted(_below(package), key=place)


def _below(module: griffe.Module) -> Iterator[griffe.Module]:
    for one in module.modules.values():
        if not one.is_alias and not one.name.startswith("_"):
            yield one
            yield from _below(one)


def page_of(module: griffe.Module) -> str:
    """Place of a module's page."""
    place = "/".join(module.path.split(".")[1:])
    return f"{PLACE}{place}/index.md" if module.is_init_module else f"{PLACE}{place}.md"


def _navigation(package: griffe.Module) -> list[Any]:
    entries: list[Any] = []
    sections: dict[str, list[Any]] = {package.path: entries}
    for module in public_modules(package):
        around = sections[module.path.rpartition(".")[0]]
        if module.is_init_module:
            sections[module.path] = [page_of(module)]
            around.append({module.name: sections[module.path]})
        else:
            around.append({module.name: page_of(module)})
    return entries


def module_page(module: griffe.Module) -> str:
    """Markdown of a module's page."""
    names = ""
    if module.is_init_module and module.exports:
        names = _table(module, [str(name) for name in module.exports])
    return f"# {module.path}\n\n::: {module.path}\n\n{names}"


def overview(package: griffe.Module) -> str:
    """Markdown of the first page: every name of `tmapdiff` itself, in the order the data flows."""
    homes = ast.literal_eval(str(package["_NAMES"].value))
    rows = "\n".join(
        _row(package[f"{home}.{name}"]) for home, names in homes.items() for name in names.split()
    )
    return (
        "# API reference\n\nThese names are imported from `tmapdiff` itself, in the order the data "
        "flows. The pages beside them document one module each: what it is for, arguments, shapes, "
        "units, errors, sources.\n\n"
        f"| name | what it is |\n| --- | --- |\n{rows}\n"
    )


def _table(module: griffe.Module, names: list[str]) -> str:
    rows = "\n".join(_row(module[name]) for name in names)
    return f"| name | what it is |\n| --- | --- |\n{rows}\n"


def _row(item: griffe.Object | griffe.Alias) -> str:
    target = item.final_target if item.is_alias else item
    said = target.docstring.value.splitlines()[0] if target.docstring else ""
    said = said.replace("|", r"\|")
    return f"| [`{item.name}`][{target.path}] | {said} |" if said else f"| `{item.name}` | |"
