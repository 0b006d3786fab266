"""`tmapdiff export`: write a pipeline's model as graphs for other programs."""

from pathlib import Path
from typing import Annotated, Literal

from tmapdiff.cli.options import PipelineArgument, StepsOption
from tmapdiff.cli.output import Output

EXAMPLES = """
tmapdiff export runs/vgg/pipeline
tmapdiff export runs/vgg/pipeline --format onnx --out exported --steps 1
tmapdiff export runs/captions/pipeline --format onnx --max-words 1
"""


def export(
    console: Output,
    pipeline: PipelineArgument,
    format: Annotated[
        Literal["pt2", "onnx"], "pt2 for torch.export.load, or onnx for onnxruntime."
    ] = "pt2",
    out: Annotated[Path | None, "DIR", "Folder to write. [default: PIPELINE-FORMAT]"] = None,
    max_words: Annotated[
        int, "Longest sentence, in words; 1 if a text encoder embeds whole sentences."
    ] = 32,
    steps: StepsOption = None,
) -> None:
    """Write the model as graphs that run without this library, in torch or onnxruntime.

    There are graphs of the encoder and the decoder (one denoising step), or one graph of a model
    that does not sample. export.json describes inputs, outputs, the grid and the schedule. The
    graphs accept any number of queries, and videos with fewer clips than the grid. They are
    compared with the model before they are written.
    """
    from tmapdiff.export import export_pipeline
    from tmapdiff.pipelines import MomentLocalizationPipeline

    loaded = MomentLocalizationPipeline.from_pretrained(pipeline)
    report = export_pipeline(
        loaded,
        out or f"{pipeline.rstrip('/')}-{format}",
        format=format,
        max_words=max_words,
        num_inference_steps=steps,
    )
    console.line(str(report))
    console.document(vars(report))
