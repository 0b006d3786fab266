import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from tmapdiff.cli.output import Output, metrics_table


@dataclass
class Thing:
    place: Path
    score: float


def test_json_is_the_only_thing_on_standard_output(capsys):
    with Output(as_json=True) as output:
        print("a library talks")
        output.line("a line")
        output.table(["a", "b"], [["c", "d"]])
        output.document({"x": 1})
    shown = capsys.readouterr()
    assert json.loads(shown.out) == {"x": 1}
    assert "a library talks\na line\n" in shown.err
    print("after")
    assert capsys.readouterr().out == "after\n"


def test_for_people_there_is_no_document(capsys):
    with Output(as_json=False) as output:
        output.line("a line [with] brackets")
        output.document({"x": 1})
    assert capsys.readouterr() == ("a line [with] brackets\n", "")


@pytest.mark.parametrize("as_json", [False, True])
def test_muted_it_prints_nothing(capsys, as_json):
    with Output(as_json) as output:
        output.is_muted = True
        output.line("a line")
        output.warning("a warning")
        output.table(["a"], [["b"]], "title")
        output.document({"x": 1})
    assert capsys.readouterr() == ("", "")
    with Output(as_json) as output:
        output.warning("a warning")
    assert capsys.readouterr() == ("", "a warning\n")


def test_documents_hold_what_commands_have(capsys):
    content = {
        "thing": Thing(Path("a/b"), math.nan),
        "numbers": (np.float32(0.5), np.int64(3), torch.tensor(2)),
        "array": np.eye(2),
        3: [True, None, "é"],
    }
    with Output(as_json=True) as output:
        output.document(content)
    assert json.loads(capsys.readouterr().out) == {
        "thing": {"place": "a/b", "score": None},
        "numbers": [0.5, 3, 2],
        "array": [[1.0, 0.0], [0.0, 1.0]],
        "3": [True, None, "é"],
    }


@pytest.mark.parametrize(("columns", "lines"), [(None, 1), ("60", 3)])
def test_tables_are_wide_without_a_terminal_unless_told(capsys, monkeypatch, columns, lines):
    monkeypatch.delenv("COLUMNS", raising=False)
    if columns:
        monkeypatch.setenv("COLUMNS", columns)
    with Output(as_json=False) as output:
        output.table(["", "text"], [["row", "word " * 25]])
    shown = capsys.readouterr().out.splitlines()
    assert len([line for line in shown if "word" in line]) == lines


def test_tables_show_texts_as_they_are(capsys):
    with Output(as_json=False) as output:
        output.table(["", "[b]"], [["[red]x[/]", ":smile:"]], "a [bold]title[/bold] :+1:")
    shown = capsys.readouterr().out
    for text in ("[b]", "[red]x[/]", ":smile:", "a [bold]title[/bold] :+1:"):
        assert text in shown


def test_metrics_that_a_row_lacks_are_dashes(capsys):
    with Output(as_json=False) as output:
        metrics_table(output, {"prior": {"mIoU": 1.0}, "model": {"mIoU": 2.345, "R": 50.0}}, "t")
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["prior", "1.00", "-"] in rows
    assert ["model", "2.35", "50.00"] in rows or ["model", "2.34", "50.00"] in rows
