"""Options of several commands, and the conversion of functions to typer commands."""

from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from functools import partial, wraps
from inspect import Parameter, signature
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_type_hints

import typer

from tmapdiff._core.checks import first_line, message
from tmapdiff._core.numbers import parse_integer, parse_number
from tmapdiff.cli.output import JsonOption, Output, to_json
from tmapdiff.errors import ConfigError

if TYPE_CHECKING:
    from tmapdiff.pipelines import MomentLocalizationPipeline

FormatName = Literal["charades-sta", "didemo", "activitynet", "tacos", "vslnet", "moment-jsonl"]
SplitName = Literal["train", "val", "test"]
ProtocolName = Literal["rank", "didemo", "qvhighlights"]

DatasetOption = Annotated[
    FormatName | None, "Format of the annotations. [default: detected from names and contents]"
]
SecondsPerFeatureOption = Annotated[
    float | None, "Seconds between features, for stores that do not declare it."
]
PipelineArgument = Annotated[
    str, typer.Argument(metavar="PIPELINE", help="Folder of a pipeline, or name on the hub.")
]
TopOption = Annotated[int, "Largest number of moments per sentence."]
StepsOption = Annotated[int | None, "Denoising steps. [default: the model's]"]
SeveralStepsOption = Annotated[
    list[int] | None,
    typer.Option(
        help="Denoising steps. Can be repeated; predictions are those of the first. [default: the "
        "model's]",
        show_default=False,
    ),
]
SamplesOption = Annotated[
    int | None,
    "Samples per query, which are averaged. [default: the model's]",
]
RankingOption = Annotated[
    Literal["nms", "expected-hits", "nms-then-expected-hits"] | None,
    "How moments are read from the maps. [default: the model's]",
]
AnswerOption = Annotated[
    Literal["ranked", "set"],
    "ranked: the best moments, however well they fit; set: an estimated number of moments, "
    "possibly none, with probabilities as scores; of several samples, one set is chosen.",
]
SeedOption = Annotated[int, "Seed of all random numbers."]
NoiseSeedOption = Annotated[int, "Seed of the noise."]
DeviceOption = Annotated[
    str, "DEVICE", "Device: cpu, cuda, cuda:1, ...; auto uses a GPU if there is one."
]


@dataclass(frozen=True)
class PipelineOptions:
    """Options of the pipeline: a trained one, or one made from an encoder."""

    model: Annotated[str | None, "PIPELINE", "Folder of a pipeline, or its name on the hub."] = None
    zero_shot: Annotated[
        str | None,
        "NAME",
        "Instead of a trained pipeline, a transformers model that embeds images and sentences, "
        "such as openai/clip-vit-base-patch32: folder, or name on the hub.",
    ] = None
    text_encoder: Annotated[
        str | None,
        "NAME",
        "For text tracks (.srt, .vtt, .jsonl): a sentence encoder of transformers, such as "
        "sentence-transformers/all-MiniLM-L6-v2: folder, or name on the hub.",
    ] = None

    def __post_init__(self) -> None:
        if sum(one is not None for one in vars(self).values()) != 1:
            text = "pass exactly one of --model, --zero-shot and --text-encoder."
            raise typer.BadParameter(text, param_hint="'--model'")

    @property
    def name(self) -> str:
        """The name that was passed."""
        return self.model or self.zero_shot or self.text_encoder or ""

    def load(self, device: str) -> "MomentLocalizationPipeline":
        """Load the pipeline on a device."""
        from tmapdiff.pipelines import MomentLocalizationPipeline

        if self.zero_shot is not None:
            pipeline = MomentLocalizationPipeline.from_two_towers(self.zero_shot)
        elif self.text_encoder is not None:
            pipeline = MomentLocalizationPipeline.from_text_encoder(self.text_encoder)
        else:
            pipeline = MomentLocalizationPipeline.from_pretrained(self.model or "")
        return pipeline.to(find_device(device))


def find_device(name: str) -> str:
    """Return the device of a name; `auto` is a GPU if there is one."""
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    # torch reports missing devices by errors of several types.
    except (RuntimeError, AssertionError, ValueError, NotImplementedError) as error:
        reason = f"{first_line(error).rstrip('.')}."
        text = message("--device", "a device of this machine", repr(name), reason)
        raise ConfigError(text) from None
    return name


def as_command(function: Callable[..., None]) -> Callable[..., None]:
    """Convert a function to what typer accepts.

    Dataclass parameters become one option per field, and `console`, the `Output`, becomes `--json`.
    Strings that annotate a parameter are the metavar, if any, and the help of its option. Flags
    have no `--no-` form. Numbers are parsed as in files: typer would read `1_0` as 10.
    """
    hints = get_type_hints(function)
    groups: dict[str, Any] = {name: kind for name, kind in hints.items() if is_dataclass(kind)}
    parameters: list[Parameter] = []
    for parameter in signature(function).parameters.values():
        group = groups.get(parameter.name)
        several = [parameter] if group is None else signature(group).parameters.values()
        parameters += [_as_option(one) for one in several if one.name != "console"]
    json_option = Parameter("as_json", Parameter.KEYWORD_ONLY, default=False, annotation=JsonOption)

    @wraps(function)
    def command(as_json: bool, **values: Any) -> None:
        for name, group in groups.items():
            values[name] = group(**{field.name: values.pop(field.name) for field in fields(group)})
        with Output(as_json) as console:
            function(console=console, **values)

    all_of_them = signature(function).replace(parameters=[*parameters, json_option])
    vars(command)["__signature__"] = all_of_them
    return command


def _as_option(parameter: Parameter) -> Parameter:
    kind, *about = get_args(parameter.annotation) or (parameter.annotation,)
    parts = [kind, *get_args(kind), *(one for part in get_args(kind) for one in get_args(part))]
    if about and isinstance(about[-1], str):
        *metavar, text = about
        about = [typer.Option(metavar=metavar[0] if metavar else None, help=text)]
    for info in about:
        if kind is bool and info.default is ...:
            info.param_decls = (f"--{parameter.name.replace('_', '-')}",)
        for number in (int, float):
            if number in parts:
                info.parser = partial(_read_number, number)
                info.metavar = info.metavar or f"<{number.__name__}>"
        kind = Annotated[kind, info]
    return parameter.replace(kind=Parameter.KEYWORD_ONLY, annotation=kind)


def _read_number(kind: type, given: Any) -> Any:
    if not isinstance(given, str):  # the default value
        return given
    number = parse_integer(given) if kind is int else parse_number(given)
    if number is None:
        what = "integer" if kind is int else "number"
        raise typer.BadParameter(f"{given!r} is not a valid {what}.")
    return number


def refuse_idle(*options: tuple[str, object, str]) -> None:
    """Refuse options without effect, given as (name, whether it has none, what it needs)."""
    for name, is_idle, needed in options:
        if is_idle:
            raise typer.BadParameter(f"it has no effect without {needed}.", param_hint=f"'{name}'")


def given(context: typer.Context) -> dict[str, Any]:
    """Return the command and all its options, to record them with results."""
    values = {name: value for name, value in context.params.items() if name != "as_json"}
    return {"command": context.info_name, "options": to_json(values)}
