"""Runs the commands of the page about the command line, in order, in one folder.

In a block

    ```console
    $ tmapdiff ...
    ...
    ```

each command is run, and the lines below it, up to the next, are what it prints on standard output:
a line `...` stands for any lines, and blanks count as one. A block with another exit code than 0
says so in the line before it: `<!-- exit code 1 -->`.
"""

import re
import shlex
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState
from helpers.videos import number_image, write_video

from tmapdiff.cli import main

PAGE = Path(__file__).parents[2] / "docs" / "guides" / "command-line.md"
BLOCK = re.compile(r"(?:<!-- exit code (\d+) -->\n)?^```console\n(.*?)^```$", re.M | re.S)


def commands_of(text):
    """Give each command with its exit code and the lines that it prints."""
    for code, block in BLOCK.findall(text):
        for part in re.split(r"^\$ ", block, flags=re.M)[1:]:
            command, *lines = part.strip("\n").split("\n")
            yield command, int(code or 0), lines


def squeezed(lines):
    return [" ".join(line.split()) for line in lines if line.strip()]


def matches(printed, wanted):
    """Whether lines are as a page shows them; `...` stands for any."""
    if not wanted:
        return not printed
    if wanted[0] == "...":
        return any(matches(printed[skip:], wanted[1:]) for skip in range(len(printed) + 1))
    return bool(printed) and printed[0] == wanted[0] and matches(printed[1:], wanted[1:])


@pytest.mark.train
def test_commands_print_what_the_page_says(folder_of_a_reader, capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)  # tables keep to it where it is set
    (folder_of_a_reader / "videos").mkdir()
    for index, (name, seconds) in enumerate((("kitchen", 30), ("garden", 24))):
        images = [number_image(32 * index + second) for second in range(seconds)]
        path = folder_of_a_reader / "videos" / f"{name}.mp4"
        write_video(path, range(seconds + 1), images=images)
    found = list(commands_of(PAGE.read_text()))
    assert {shlex.split(command)[1] for command, _, _ in found} == {
        "train", "evaluate", "score", "localize", "extract", "inspect", "convert",
    }  # fmt: skip
    for command, code, lines in found:
        AcceleratorState._reset_state(reset_partial_state=True)
        program, *arguments = shlex.split(command)
        assert program == "tmapdiff"
        assert main(arguments) == code, command
        printed = squeezed(capsys.readouterr().out.splitlines())
        assert matches(printed, squeezed(lines)), "\n".join([command, *printed])


def test_lines_are_compared_to_the_last():
    for printed, wanted in (("ab", "a"), ("a", "ab"), ("abc", ["...", "b"])):
        assert not matches(list(printed), list(wanted)), (printed, wanted)
    assert matches([*"abc"], ["...", "c"])
