"""Output of commands: tables for people, or one JSON document for programs."""

import contextlib
import dataclasses
import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tmapdiff.cli.entry import printable

if TYPE_CHECKING:
    from tmapdiff.recipes import LocalizationData, Results

JsonOption = Annotated[
    bool,
    typer.Option(
        "--json", help="Print one JSON document on standard output; messages go to standard error."
    ),
]
# Short names of metrics; of QVHighlights' metrics, only these are printed.
_BRIEF = {
    "MR-full-R1@0.5": "R1@0.5",
    "MR-full-R1@0.7": "R1@0.7",
    "MR-full-mAP@0.5": "mAP@0.5",
    "MR-full-mAP@0.75": "mAP@0.75",
    "MR-full-mAP": "mAP",
    "MR-short-mAP": "short mAP",
    "MR-middle-mAP": "middle mAP",
    "MR-long-mAP": "long mAP",
    "HL-min-VeryGood-mAP": "HL-mAP",
    "HL-min-VeryGood-Hit1": "HIT@1 (Very Good)",
    "Set-F1@0.5": "set F1@0.5",
    "Set-F1@0.7": "set F1@0.7",
    "Set-count-error": "count error",
    "Set-exact": "exact sets",
}
_WIDTH = 160  # columns of a table without a terminal


class Output(contextlib.ExitStack):
    """Output of a command.

    With `as_json`, until it is closed, it redirects all printing, also by libraries, to standard
    error, so that only the document is on standard output.
    """

    def __init__(self, as_json: bool) -> None:
        super().__init__()
        self.as_json = as_json
        self.is_muted = False  # set in all but the first of several processes
        self._stdout = sys.stdout
        if as_json:
            self.enter_context(contextlib.redirect_stdout(sys.stderr))

    def line(self, text: str) -> None:
        """Print a line for people."""
        if not self.is_muted:
            typer.echo(printable(text))

    def warning(self, text: str) -> None:
        """Print a line to standard error."""
        if not self.is_muted:
            typer.echo(printable(text), err=True)

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[str]], title: str = "") -> None:
        """Print a table, with all but the first column right-aligned."""
        from rich.box import SIMPLE_HEAD
        from rich.console import Console
        from rich.table import Table

        if self.is_muted:
            return
        if title:  # printed here, as the table would wrap it at its own width
            self.line(title)
        table = Table(box=SIMPLE_HEAD, pad_edge=False)
        for index, column in enumerate(columns):
            table.add_column(
                printable(column), justify="right" if index else "left", overflow="fold"
            )
        for row in rows:
            table.add_row(*map(printable, row))
        known = sys.stdout.isatty() or "COLUMNS" in os.environ
        width = None if known else _WIDTH
        console = Console(markup=False, emoji=False, highlight=False, width=width)
        console.print(table)

    def document(self, content: Mapping[str, Any], indent: int | None = 2) -> None:
        """With `--json`, print the answer, or with `indent` None, one of many as one line."""
        if self.as_json and not self.is_muted:
            text = json.dumps(to_json(content), indent=indent, ensure_ascii=False, allow_nan=False)
            # File names that are not UTF-8 are escaped.
            text = text.encode(errors="backslashreplace").decode()
            self._stdout.write(f"{text}\n")
            self._stdout.flush()


@contextlib.contextmanager
def progress(text: str, total: int | None = None) -> Iterator[Callable[[], None]]:
    """Show a progress bar on standard error if it is a terminal; yield a function to advance it.

    Standard output is not redirected, and should not be a terminal if it is used.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda: None
        return
    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, redirect_stdout=False) as bar:
        task = bar.add_task(text, total=total)
        yield lambda: bar.advance(task)


def report_results(
    output: Output,
    results: "Results",
    data: "LocalizationData",
    folder: Path,
    details: Mapping[str, Any],
    also_written: Sequence[str] = (),
) -> dict[str, Any]:
    """Write results into a folder, print them, and return the document for `--json`."""
    from tmapdiff.provenance import describe_run

    metrics_table(output, results.rows, f"{data.store.description}; percent")
    details = {
        "features": data.store.description,
        "evaluated_on": data.evaluated_on,
        "annotations": {part: str(path) for part, path in data.files.items()},
        **details,
        **describe_run(),
    }
    names = [*results.write(folder, details), *also_written]
    output.line(f"written to {folder}: {', '.join(names)}")
    return {**results.summary(), **details, "output": folder, "files": names}


def metrics_table(output: Output, rows: Mapping[str, Mapping[str, float]], title: str) -> None:
    """Print metrics in percent by row."""
    names = list(dict.fromkeys(name for metrics in rows.values() for name in metrics))
    if "MR-full-mAP" in names:
        names = [name for name in names if name in _BRIEF or name.startswith("Presence-")]
        names.sort(key=[*_BRIEF, *names].index)
    shown = [
        [row, *(f"{metrics[name]:.2f}" if name in metrics else "-" for name in names)]
        for row, metrics in rows.items()
    ]
    output.table(["", *(_BRIEF.get(name, name) for name in names)], shown, title)


def to_json(value: Any) -> Any:
    """Convert paths, dataclasses, arrays and numbers to what JSON can hold."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "tolist"):  # arrays, tensors and their scalars
        return to_json(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
