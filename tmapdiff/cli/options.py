"""Options that several commands have, and what typer is told of a command."""

from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from functools import partial, wraps
from inspect import Parameter, signature
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_type_hints

import typer

from tmapdiff._core.checks import first_line, message
from tmapdiff._core.numbers import parse_integer, parse_number
from tmapdiff.cli.output import to_json
from tmapdiff.errors import ConfigError

if TYPE_CHECKING:
    from tmapdiff.pipelines import MomentLocalizationPipeline

FormatName = Literal["charades-sta", "didemo", "activitynet", "tacos", "vslnet", "moment-jsonl"]
SplitName = Literal["train", "val", "test"]
ProtocolName = Literal["rank", "didemo", "qvhighlights"]

DatasetOption = Annotated[
    FormatName | None,
    typer.Option(help="Format of the annotations. [default: found by names and contents]"),
]
ProtocolOption = Annotated[
    ProtocolName | None,
    typer.Option(
        help="How answers are judged: rank counts an IoU above a threshold (2D-TAN), qvhighlights "
        "from the threshold on, and has mAP, for queries with several moments (moment_detr). "
        "[default: didemo for DiDeMo, else rank]"
    ),
]
SecondsPerFeatureOption = Annotated[
    float | None,
    typer.Option(help="Seconds from one feature to the next, of stores that do not say it."),
]
ModelOption = Annotated[
    str, typer.Option(metavar="PIPELINE", help="Folder of a pipeline, or its name on the hub.")
]
StepsOption = Annotated[int | None, typer.Option(help="Denoising steps. [default: the model's]")]
SeveralStepsOption = Annotated[
    list[int] | None,
    typer.Option(
        help="Denoising steps; given several times, each is evaluated, and the predictions of the "
        "first are written. [default: the model's]",
        show_default=False,
    ),
]
SamplesOption = Annotated[
    int | None,
    typer.Option(
        help="Samples of each query that are averaged or, with --answer set, from whose sets one "
        "is chosen. [default: the model's]"
    ),
]
RankingOption = Annotated[
    Literal["nms", "expected-hits", "nms-then-expected-hits"] | None,
    typer.Option(help="How moments are read off the maps. [default: the model's]"),
]
AnswerOption = Annotated[
    Literal["ranked", "set"],
    typer.Option(
        help="The best moments, however well they fit; or the set of those that there seem to be, "
        "possibly none, with probabilities for scores."
    ),
]
SeedOption = Annotated[int, typer.Option(help="Seed of all that is drawn.")]
NoiseSeedOption = Annotated[int, typer.Option(help="Seed of the noise.")]
DeviceOption = Annotated[
    str,
    typer.Option(
        metavar="DEVICE", help="Where to compute: cpu, cuda, cuda:1, ...; auto takes a GPU if any."
    ),
]


@dataclass(frozen=True)
class PipelineOptions:
    """Which pipeline answers: a trained one, or one that is made of an encoder."""

    model: Annotated[
        str | None,
        typer.Option(metavar="PIPELINE", help="Folder of a pipeline, or its name on the hub."),
    ] = None
    zero_shot: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="In place of a trained pipeline, a model of transformers that sees pictures and "
            "reads sentences, such as openai/clip-vit-base-patch32: its folder, or its name on the "
            "hub.",
        ),
    ] = None
    text_encoder: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="For videos that are text tracks (.srt, .vtt, .jsonl): a sentence encoder of "
            "transformers, such as all-MiniLM-L6-v2: its folder, or its name on the hub.",
        ),
    ] = None

    @property
    def name(self) -> str:
        """What was named."""
        return self.model or self.zero_shot or self.text_encoder or ""

    def load(self, device: str) -> "MomentLocalizationPipeline":
        """Make the pipeline, on a device."""
        from tmapdiff.pipelines import MomentLocalizationPipeline

        if self.zero_shot is not None:
            pipeline = MomentLocalizationPipeline.from_two_towers(self.zero_shot)
        elif self.text_encoder is not None:
            pipeline = MomentLocalizationPipeline.from_text_encoder(self.text_encoder)
        else:
            pipeline = MomentLocalizationPipeline.from_pretrained(self.model or "")
        return pipeline.to(find_device(device))

    def check(self) -> None:
        """Refuse more than one, and none."""
        named = [one for one in vars(self).values() if one is not None]
        if len(named) != 1:
            text = "name one: --model, --zero-shot or --text-encoder."
            raise typer.BadParameter(text, param_hint="'--model'")


def find_device(name: str) -> str:
    """Return the device that `name` means; `auto` is a GPU if there is one."""
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    # torch words the lack of a device in errors of several kinds.
    except (RuntimeError, AssertionError, ValueError, NotImplementedError) as error:
        reason = f"{first_line(error).rstrip('.')}."
        text = message("--device", "a device of this machine", repr(name), reason)
        raise ConfigError(text) from None
    return name


def as_command(function: Callable[..., None]) -> Callable[..., None]:
    """Make of a function what typer takes.

    Parameters that are dataclasses become an option for each field. Flags have no `--no-` form.
    Numbers are read as those of files are: typer takes `1_0` for 10.
    """
    hints = get_type_hints(function)
    groups: dict[str, Any] = {name: kind for name, kind in hints.items() if is_dataclass(kind)}
    parameters: list[Parameter] = []
    for parameter in signature(function).parameters.values():
        group: Any = groups.get(parameter.name)
        parameters += [parameter] if group is None else signature(group).parameters.values()
    for parameter in parameters:
        kind, *about = get_args(parameter.annotation) or (parameter.annotation,)
        parts = [kind, *get_args(kind), *(one for part in get_args(kind) for one in get_args(part))]
        for info in about:
            if kind is bool and info.default is ...:
                info.param_decls = (f"--{parameter.name.replace('_', '-')}",)
            for number in (int, float):
                if number in parts:
                    info.parser = partial(_read_number, number)
                    info.metavar = info.metavar or f"<{number.__name__}>"

    @wraps(function)
    def command(**values: Any) -> None:
        for name, group in groups.items():
            values[name] = group(**{field.name: values.pop(field.name) for field in fields(group)})
        function(**values)

    keywords = [parameter.replace(kind=Parameter.KEYWORD_ONLY) for parameter in parameters]
    vars(command)["__signature__"] = signature(function).replace(parameters=keywords)
    return command


def _read_number(kind: type, given: Any) -> Any:
    if not isinstance(given, str):  # what it is by default
        return given
    number = parse_integer(given) if kind is int else parse_number(given)
    if number is None:
        what = "integer" if kind is int else "number"
        raise typer.BadParameter(f"{given!r} is not a valid {what}.")
    return number


def refuse_idle(*options: tuple[str, object, str]) -> None:
    """Refuse options in vain: each by its name, whether it is, and what it needs."""
    for name, in_vain, needed in options:
        if in_vain:
            raise typer.BadParameter(f"it has no effect without {needed}.", param_hint=f"'{name}'")


def given(context: typer.Context) -> dict[str, Any]:
    """Return the command and all its options, for people who ask later what was run."""
    values = {name: value for name, value in context.params.items() if name != "as_json"}
    return {"command": context.info_name, "options": to_json(values)}
