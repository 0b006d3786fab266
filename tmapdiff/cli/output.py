"""What a command answers: tables for people, or one JSON document for programs."""

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
from typing_extensions import Self

from tmapdiff.cli.entry import printable

if TYPE_CHECKING:
    from tmapdiff.recipes import LocalizationData, Results

JsonOption = Annotated[
    bool,
    typer.Option(
        "--json", help="Print one JSON document on standard output; messages go to standard error."
    ),
]
# What metrics are printed as; of the protocol with many, these alone.
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
_WIDTH = 160  # columns of a table where there is no terminal


class Output:
    """Where a command writes.

    While it is entered with `as_json`, all that is printed goes to standard error, so that nothing
    but the document is on standard output, whichever library prints.
    """

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json
        self.is_muted = False  # as all but the first of several processes should be
        self._redirection = contextlib.ExitStack()
        self._stdout = sys.stdout

    def __enter__(self) -> Self:
        self._stdout = sys.stdout
        if self.as_json:
            self._redirection.enter_context(contextlib.redirect_stdout(sys.stderr))
        return self

    def __exit__(self, *error: object) -> None:
        self._redirection.close()

    def line(self, text: str) -> None:
        """Print a line that is part of the answer for people."""
        if not self.is_muted:
            typer.echo(printable(text))

    def warning(self, text: str) -> None:
        """Print a line to standard error."""
        if not self.is_muted:
            typer.echo(printable(text), err=True)

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[str]], title: str = "") -> None:
        """Print a table; all but its first column is flush right."""
        from rich.box import SIMPLE_HEAD
        from rich.console import Console
        from rich.table import Table

        if self.is_muted:
            return
        if title:  # which a table would break at its own width
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

    def record(self, content: Mapping[str, Any]) -> None:
        """Print one of many answers for programs, on a line of its own, if that is wanted."""
        self._print(content, indent=None)

    def document(self, content: Mapping[str, Any]) -> None:
        """Print the answer for programs, if that is what is wanted."""
        self._print(content, indent=2)

    def _print(self, content: Mapping[str, Any], indent: int | None) -> None:
        if self.as_json and not self.is_muted:
            text = json.dumps(to_json(content), indent=indent, ensure_ascii=False, allow_nan=False)
            # A name of a file that is no UTF-8 becomes an escape, which JSON knows.
            text = text.encode(errors="backslashreplace").decode()
            self._stdout.write(f"{text}\n")
            self._stdout.flush()


@contextlib.contextmanager
def progress(text: str, total: int | None = None) -> Iterator[Callable[[], None]]:
    """Show a progress bar on standard error, if that is a terminal; gives what advances it.

    What is printed on standard output meanwhile goes there, and should be no terminal.
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
    """Write the results into a folder, print them, and return the document for `--json`."""
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
    """Print metrics in percent, a row for each of what gave them."""
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
    """Bring paths, dataclasses, arrays and numbers of any kind into a form that JSON holds."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "tolist"):  # arrays and tensors, of no dimension too
        return to_json(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
