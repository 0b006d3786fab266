import inspect
import shlex
from importlib import import_module

import pytest
import typer

import tmapdiff.presets
from tmapdiff.cli import train
from tmapdiff.cli.app import COMMANDS, app
from tmapdiff.cli.options import FormatName, ProtocolName, RankingOption, SplitName
from tmapdiff.data import AnnotationFormat, Split
from tmapdiff.evaluation import Protocol
from tmapdiff.models import Ranking


def parse(line):
    """Parse a command line without running it; raises what typer raises."""
    words = shlex.split(line)
    while "=" in words[0]:  # a variable of the environment
        del words[0]
    program, name, *arguments = words
    assert program == "tmapdiff"
    typer.main.get_command(app).commands[name].make_context(name, arguments)
    return name


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_are_typed_and_explained(command):
    file = import_module(f"tmapdiff.cli.{command}")
    lines = file.EXAMPLES.strip().replace("\\\n", " ").splitlines()
    assert lines
    for line in lines:
        assert parse(line) == command.replace("_", "-")
    for parameter in inspect.signature(getattr(file, command)).parameters.values():
        assert parameter.annotation is not inspect.Parameter.empty
    made = typer.main.get_command(app).commands[command.replace("_", "-")]
    assert made.help.strip()
    for parameter in made.params:
        assert getattr(parameter, "help", None), f"{command} {parameter.name}"
    assert "--json" in {name for parameter in made.params for name in parameter.opts}


def test_strings_that_annotate_a_parameter_are_its_metavar_and_help():
    options = typer.main.get_command(app).commands["extract"].params
    about = {one.name: (one.metavar, one.help) for one in options}
    assert about["out"] == ("FILE", "HDF5 file to create or extend.")
    assert about["fps"] == ("<float>", "Features per second.")


def test_a_wrong_example_is_noticed():
    with pytest.raises(typer.BadParameter.__base__):
        parse("tmapdiff extract videos --no-such")


def test_choices_are_those_of_the_library():
    # Named here, and not asked of the library, which would load torch for a line of help.
    presets = [*tmapdiff.presets.PRESETS, *tmapdiff.presets.FORMER_NAMES]
    assert list(train.PresetName.__args__) == presets
    assert list(train.DecoderName.__args__) == list(tmapdiff.presets.DECODERS)
    assert FormatName.__args__ == AnnotationFormat.__args__
    assert SplitName.__args__ == Split.__args__
    assert ProtocolName.__args__ == Protocol.__args__
    assert RankingOption.__origin__ == Ranking | None
