"""`tmapdiff extract`: from a folder of videos to a feature store."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from tmapdiff.cli.options import DeviceOption, find_device, refuse_idle
from tmapdiff.cli.output import JsonOption, Output

EXAMPLES = """
tmapdiff extract videos --model vgg16 --out vgg16.h5 --fps 2
tmapdiff extract videos --model vit_base_patch16_clip_224.openai --out clip.h5 \\
    --device cuda --mixed-precision fp16 --workers 8 --batch-size 256
tmapdiff extract videos --model resnet50 --out r50.h5 --weights resnet50.safetensors
tmapdiff extract videos --model hf:google/siglip2-base-patch16-224 --out siglip2.h5
tmapdiff extract videos --frame-encoder runs/vgg/pipeline/frame_encoder --out more.h5 --fps 2
"""
_HF = "hf:"


def extract(
    videos: Annotated[
        Path,
        typer.Argument(metavar="DIR", help="Folder of videos, or one; file names are their ids."),
    ],
    out: Annotated[Path, typer.Option(metavar="FILE", help="HDF5 file to make or add to.")],
    model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="An image model of timm, such as vgg16; or hf: and the name or folder of a model "
            "of transformers that sees pictures and reads sentences, such as CLIP and SigLIP.",
        ),
    ] = None,
    frame_encoder: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="A saved frame encoder in place of --model, such as a pipeline's frame_encoder.",
        ),
    ] = None,
    fps: Annotated[float, typer.Option(help="Features per second.")] = 2.0,
    batch_size: Annotated[int, typer.Option(help="Frames encoded at a time.")] = 32,
    workers: Annotated[
        int, typer.Option(help="Processes that decode, one video each; 0 decodes in this one.")
    ] = 0,
    device: DeviceOption = "auto",
    mixed_precision: Annotated[
        Literal["no", "fp16", "bf16"], typer.Option(help="Arithmetic of the image model.")
    ] = "no",
    pretrained: Annotated[
        bool,
        typer.Option(
            "--pretrained/--random-weights",
            help="Weights from the hub, or random ones, which are good for trials only.",
        ),
    ] = True,
    weights: Annotated[
        Path | None, typer.Option(metavar="FILE", help="File of weights, in place of the hub's.")
    ] = None,
    keep_head: Annotated[
        bool, typer.Option(help="Keep the last layer: class scores or CLIP's projection.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed of random weights.")] = 0,
    save_encoder: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Save the frame encoder, too, for train --frame-encoder."),
    ] = None,
    skip_damaged: Annotated[
        bool, typer.Option(help="Leave out damaged videos; else, what can be decoded counts.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Compute features of all videos of a folder, by an image model of timm or transformers.

    Interrupted, even killed, the same command goes on where it was. It also adds new videos,
    computes again what has changed, and tries again what failed.

    The exit code is 1 if a video was skipped or is damaged.
    """
    if (model is None) == (frame_encoder is None):
        raise typer.BadParameter("name one image model: --model or --frame-encoder.")
    of_transformers = (model or "").startswith(_HF)
    refuse_idle(
        ("--weights", weights and model is None, "--model"),
        ("--weights", weights and not pretrained, "--pretrained"),
        ("--random-weights", not pretrained and model is None, "--model"),
        ("--keep-head", keep_head and model is None, "--model"),
        ("--weights", weights and of_transformers, "a model of timm"),
        ("--random-weights", not pretrained and of_transformers, "a model of timm"),
        ("--keep-head", keep_head and of_transformers, "a model of timm"),
        ("--mixed-precision", mixed_precision != "no" and model is None, "--model"),
    )
    with Output(as_json) as output:
        import torch

        from tmapdiff.video import (
            FrameEncoder,
            TransformersFrameEncoder,
            extract_features,
            load_frame_encoder,
        )

        place = find_device(device)
        if model is None:
            encoder = load_frame_encoder(frame_encoder or "", device=place)
        elif of_transformers:
            encoder = TransformersFrameEncoder(
                model.removeprefix(_HF), mixed_precision=mixed_precision, device=place
            )
        else:
            torch.manual_seed(seed)
            encoder = FrameEncoder(
                model,
                pretrained=pretrained,
                weights=weights,
                keep_head=keep_head,
                mixed_precision=mixed_precision,
                device=place,
            )
        if save_encoder is not None:
            encoder.save_pretrained(save_encoder)
        report = extract_features(
            [videos] if videos.is_file() else videos,
            encoder,
            out,
            fps=fps,
            batch_size=batch_size,
            num_workers=workers,
            skip_damaged=skip_damaged,
            show_progress=not as_json,
        )
        output.line(str(report))
        output.document({**vars(report), "model": encoder.description, "fps": fps})
    if report.skipped or report.damaged:
        raise typer.Exit(1)
