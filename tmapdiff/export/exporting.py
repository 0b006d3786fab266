"""Export of a localizer's graphs, and of the numbers that the loop around them needs."""

import json
import os
import re
import warnings
from copy import deepcopy
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from tmapdiff._core.checks import check_choice, check_int, foreign_errors, message, require
from tmapdiff._core.files import folder_to_save_in, written_beside
from tmapdiff._version import __version__
from tmapdiff.errors import ConfigError
from tmapdiff.layers.gated_conv import MapConv2d
from tmapdiff.layers.pointwise import PointwiseConv2d
from tmapdiff.losses import OBJECTIVES
from tmapdiff.maps import MultiScaleMapSampler, expect_map
from tmapdiff.models import MapLocalizer, MomentLocalizer, SimilarityLocalizer
from tmapdiff.models.lstm import PaddedLSTM
from tmapdiff.pipelines import MomentLocalizationPipeline

Format = Literal["pt2", "onnx"]
_WHO = "export_pipeline"
_INFO = "export.json"
_FILES = re.compile(r"(encoder|decoder|localizer)\.(pt2|onnx)|export\.json|vocabulary\.json")
_BATCH, _CHECKED = 3, (1, 5)  # batch sizes for tracing, and for the comparison with the model
_TOLERANCE = 1e-4
_MOST_MOMENTS = 4096  # of a SimilarityLocalizer, whose table of all pairs then takes 64 MB


@dataclass(frozen=True)
class ExportReport:
    """Result of an export.

    Attributes:
        folder: The folder.
        sizes: Bytes of each file, by name.
        difference: Largest difference between the results of the graphs and of the model, relative
            to the largest result if that is above 1.
    """

    folder: Path
    sizes: dict[str, int]
    difference: float

    def __str__(self) -> str:
        files = ", ".join(f"{name} ({size / 1e6:.1f} MB)" for name, size in self.sizes.items())
        return f"{self.folder}: {files}; equal to the model to {self.difference:.1g}"


def export_pipeline(
    pipeline: MomentLocalizationPipeline,
    folder: str | os.PathLike[str],
    *,
    format: Format = "pt2",
    max_words: int = 32,
    num_inference_steps: int | None = None,
) -> ExportReport:
    """Export the localizer of a pipeline as graphs that run without this library.

    A `MomentLocalizer` becomes the graphs `encoder` and `decoder`, which does one denoising step.
    Other localizers become one graph, `localizer`. Graphs take batches of any size, and the number
    of clips of each video, up to the grid's. `export.json` has their inputs and outputs, the grid
    and the numbers of all denoising steps; `vocabulary.json` has the words. `OnnxLocalizer` runs
    them with onnxruntime. Frame and text encoders are not exported.

    Each graph is compared with the model before it is written, in batches of other sizes than it
    was traced with.

    Args:
        pipeline: The pipeline; it is not changed.
        folder: Output folder. Files of an earlier export are replaced.
        format: `pt2` for `torch.export.load`, or `onnx`.
        max_words: Words of the longest sentence; 1 if a text encoder supplies whole sentences.
        num_inference_steps: Denoising steps. Defaults to the model's number.

    Raises:
        ConfigError: If the format is unknown, torch is older than 2.8, or the model, or its
            scheduler's solver, cannot be exported.
        ArgumentError: If a number is out of range.
        MissingDependencyError: If a package for `onnx` is not installed.
        FileError: If the folder cannot be written.
    """
    check_choice(_WHO, "format", format, get_args(Format))
    check_int(_WHO, "max_words", max_words, at_least=1)
    if torch.__version__ < "2.8":  # a TorchVersion, not a string
        raise ConfigError(message(_WHO, "torch 2.8 or later", torch.__version__))
    if format == "onnx":
        for package in ("onnxscript", "onnxruntime"):
            require(package, extra="onnx", purpose="Exporting to ONNX")
    info = _describe(pipeline, max_words, num_inference_steps) | {"format": format}
    model, difference = _portable(pipeline.localizer), 0.0
    target = folder_to_save_in(_WHO, folder)
    replacing = written_beside(target, replaces={"": _FILES})
    with replacing as new, torch.no_grad(), model.without_checks():
        new.mkdir()
        for graph in _graphs_of(model, info):
            with foreign_errors(ConfigError, f"{_WHO}: cannot export a {type(model).__name__}"):
                program = _trace(graph)
                if format == "onnx":
                    program = graph.to_onnx(program)
                difference = max(difference, _compare(graph, program))
                graph.write(program, new)
            info["graphs"][graph.name] = {"inputs": graph.inputs, "outputs": graph.outputs}
        if pipeline.vocabulary is not None:
            pipeline.vocabulary.save(new / "vocabulary.json")
        (new / _INFO).write_text(json.dumps(info, indent=1) + "\n", encoding="utf-8")
        sizes = {file.name: file.stat().st_size for file in sorted(new.iterdir())}
    return ExportReport(target, sizes, difference)


def _describe(
    pipeline: MomentLocalizationPipeline, max_words: int, steps: int | None
) -> dict[str, Any]:
    model, encoder = pipeline.localizer, pipeline.localizer.encoder.config
    name = model.objective.name
    if name not in OBJECTIVES:
        expected = f"a model with one of the objectives {', '.join(OBJECTIVES)}"
        raise ConfigError(message(_WHO, expected, name))
    durations = pipeline.config.durations
    info: dict[str, Any] = {
        "tmapdiff": __version__,
        "model": type(model).__name__,
        "graphs": {},
        "grid": asdict(pipeline.localizer.grid),
        "clip_channels": encoder.clip_channels,
        "features_per_clip": encoder.features_per_clip,
        "text_channels": encoder.text_channels,
        "max_words": max_words,
        "clip_seconds": pipeline.config.clip_seconds,
        "fps": pipeline.config.fps,
        "longest_seconds": None if durations is None else durations[2],
        "ranking": model.config.ranking,
        "nms_threshold": model.config.nms_threshold,
        "target": name.rpartition("-")[2],
    }
    if isinstance(model, MomentLocalizer):
        info["scheduler"] = _steps_of(model, steps)
        info["num_samples"] = model.config.num_samples
    elif steps is not None and steps != 1:
        expected = "one pass for a model that is not generative"
        raise ConfigError(message(_WHO, expected, f"num_inference_steps = {steps}"))
    return info


def _steps_of(model: MomentLocalizer, steps: int | None) -> dict[str, Any]:
    """Return the numbers of each denoising step: rows of `MapScheduler.coefficients`."""
    scheduler = model.scheduler
    if scheduler.config.solver != "ddim":
        hint = "Set pipe.scheduler = MapScheduler.from_config(pipe.scheduler.config, solver='ddim')"
        got = scheduler.config.solver
        raise ConfigError(message(_WHO, "a scheduler with solver ddim", got, f"{hint}."))
    # A deterministic model takes one pass, from an empty map.
    deterministic = model.config.deterministic
    if deterministic and steps not in (None, 1):
        expected = "one step, as the model is deterministic"
        raise ConfigError(message(_WHO, expected, f"num_inference_steps = {steps}"))
    run = scheduler.begin(model.config.num_inference_steps if steps is None else steps)
    if deterministic:
        run.timesteps = [len(scheduler) - 1]
    first = scheduler.scale_model_input(torch.ones(1, 1), run.timesteps[0])
    return {
        "timesteps": run.timesteps,
        "coefficients": scheduler.coefficients(run).tolist(),
        "input_scale": first.item(),
        "alphas_cumprod": scheduler.alphas_cumprod.tolist(),
        "clip": scheduler.config.clip_sample,
        "deterministic": deterministic,
    }


def _portable(localizer: MapLocalizer) -> MapLocalizer:
    """Copy a model, replacing operations that depend on sizes or devices by plain ones."""
    model = deepcopy(localizer).to("cpu", torch.float32).eval()
    for part in model.modules():
        if isinstance(part, MapConv2d | PointwiseConv2d):
            part.forward = partial(nn.Conv2d.forward, part)  # type: ignore[method-assign]
        elif isinstance(part, PaddedLSTM):
            part.forward = part._padded  # type: ignore[method-assign]
    return model


@dataclass(frozen=True)
class _Graph:
    """A part to export, with its inputs; the first axis of all tensors is the batch."""

    name: str
    module: nn.Module
    inputs: list[str]
    outputs: list[str]
    draw: Any  # makes inputs for a batch size

    def to_onnx(self, program: Any) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's and onnxscript's own
            return torch.onnx.export(
                program,
                dynamo=True,
                input_names=self.inputs,
                output_names=self.outputs,
                verbose=False,
            )

    def write(self, program: Any, folder: Path) -> None:
        if isinstance(program, torch.export.ExportedProgram):
            torch.export.save(program, folder / f"{self.name}.pt2")
        else:
            program.save(folder / f"{self.name}.onnx", external_data=False)


class _Decoder(nn.Module):
    """One step: from noisy maps, scaled for the decoder, to the objective's clean maps."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.decoder, self.activation = model.decoder, model.objective.activation

    def forward(
        self, noisy: Tensor, timestep: Tensor, num_clips: Tensor, *features: Tensor
    ) -> Tensor:
        clean: Tensor = self.activation(self.decoder(noisy, timestep, features, num_clips))
        return clean


class _Localizer(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, features: Tensor, words: Tensor, num_words: Tensor, num_clips: Tensor
    ) -> Tensor:
        maps: Tensor = self.model.predict_maps(features, words, num_words, num_clips)
        return maps


def _graphs_of(model: MapLocalizer, info: dict[str, Any]) -> list[_Graph]:
    grid, length = model.grid, info["max_words"]
    channels, each = info["text_channels"], info["features_per_clip"]
    vocabulary = model.encoder.config.vocabulary_size

    def draw_inputs(batch: int) -> tuple[Tensor, ...]:
        source = torch.Generator().manual_seed(batch)
        random = partial(torch.randn, generator=source)
        integers = partial(torch.randint, generator=source)
        words = random(batch, length, channels) if channels else None
        if words is None:
            words = integers(0, vocabulary, (batch, length))
        # Videos that fill the grid, and shorter ones.
        num_clips = integers(1, grid.num_clips + 1, (batch,))
        num_clips[-1] = grid.num_clips
        features = random(batch, grid.num_clips * each, info["clip_channels"])
        features[1:2] = 0  # similarities without any variance
        return features, words, integers(1, length + 1, (batch,)), num_clips

    inputs = ["features", "words", "num_words", "num_clips"]
    if not isinstance(model, MomentLocalizer):
        if isinstance(model, SimilarityLocalizer):
            _fix_table(model)
        return [_Graph("localizer", _Localizer(model), inputs, ["maps"], draw_inputs)]
    maps = [f"features_{scale}" for scale in range(grid.num_scales)]
    noisy_inputs = ["noisy", "timestep", "num_clips", *maps]

    def draw_step(batch: int) -> tuple[Tensor, ...]:
        source = torch.Generator().manual_seed(batch)
        noisy = torch.randn(batch, grid.num_cells, generator=source)
        last = len(model.scheduler)
        timestep = torch.randint(0, last, (batch,), generator=source)
        given = draw_inputs(batch)
        return noisy, timestep, given[-1], *model.encoder(*given)

    return [
        _Graph("encoder", model.encoder, inputs, maps, draw_inputs),
        _Graph("decoder", _Decoder(model), noisy_inputs, ["maps"], draw_step),
    ]


def _fix_table(model: SimilarityLocalizer) -> None:
    """Make a model compute map expectations with a table of its moments, stored in the graph."""
    moments, _ = MultiScaleMapSampler(model.grid).merge_packed(torch.zeros(1, model.grid.num_cells))
    if len(moments) > _MOST_MOMENTS:
        expected = f"a grid of at most {_MOST_MOMENTS:,} moments"
        hint = "Use fewer num_anchors and more num_scales."
        raise ConfigError(message(_WHO, expected, f"{len(moments):,}", hint))
    table = expect_map(moments, torch.eye(len(moments)), model.objective.target)
    model.register_buffer("table", table, persistent=False)

    def expect(logits: Tensor, valid: Tensor, candidates: Any) -> Tensor:
        return logits.masked_fill(~valid, -torch.inf).softmax(1) @ model.table

    model._expect = expect  # type: ignore[method-assign]


def _trace(graph: _Graph) -> Any:
    inputs = graph.draw(_BATCH)
    batch = torch.export.Dim("batch", min=1)
    shapes: Any = tuple({0: batch} for _ in inputs)
    if isinstance(graph.module, _Decoder):
        shapes = (*shapes[:3], shapes[3:])  # for `*features`
    graph.module(*inputs)  # fills caches of tables, which must not happen during tracing
    return torch.export.export(graph.module, inputs, dynamic_shapes=shapes, strict=False)


def _compare(graph: _Graph, program: Any) -> float:
    run = program.module() if isinstance(program, torch.export.ExportedProgram) else program
    differences = []
    for batch in _CHECKED:
        inputs = graph.draw(batch)
        results = graph.module(*inputs), run(*inputs)
        expected, found = ([one] if isinstance(one, Tensor) else one for one in results)
        for one, other in zip(expected, found, strict=True):
            # Relative for large values, as float32 has.
            differences.append((one - other).abs().max() / one.abs().max().clamp(min=1))
    largest = torch.stack(differences).max().item()  # NaN if any is, unlike Python's max
    if not largest <= _TOLERANCE:
        got = f"a difference of {largest:.2g}"
        raise ConfigError(message(_WHO, "graphs with the model's results", got))
    return largest
