"""`tmapdiff extract`: compute features of videos."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from tmapdiff.cli.options import DeviceOption, find_device, refuse_idle
from tmapdiff.cli.output import Output, progress

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
    console: Output,
    videos: Annotated[
        Path,
        typer.Argument(metavar="DIR", help="Folder of videos, or one video; names are the ids."),
    ],
    out: Annotated[Path, "FILE", "HDF5 file to create or extend."],
    model: Annotated[
        str | None,
        "NAME",
        "A timm image model, such as vgg16; or hf: and the name or folder of a transformers model "
        "that embeds images and sentences, such as CLIP or SigLIP.",
    ] = None,
    frame_encoder: Annotated[
        Path | None,
        "DIR",
        "A saved frame encoder instead of --model, such as a pipeline's frame_encoder.",
    ] = None,
    fps: Annotated[float, "Features per second."] = 2.0,
    batch_size: Annotated[int, "Frames per batch."] = 32,
    workers: Annotated[int, "Processes that decode one video each; 0 decodes in this process."] = 0,
    device: DeviceOption = "auto",
    mixed_precision: Annotated[
        Literal["no", "fp16", "bf16"], "Precision of the image model."
    ] = "no",
    pretrained: Annotated[
        bool,
        typer.Option(
            "--pretrained/--random-weights",
            help="Weights from the hub, or random ones for tests.",
        ),
    ] = True,
    weights: Annotated[Path | None, "FILE", "File of weights instead of the hub's."] = None,
    keep_head: Annotated[bool, "Keep the last layer: class scores or CLIP's projection."] = False,
    seed: Annotated[int, "Seed of random weights."] = 0,
    save_encoder: Annotated[
        Path | None, "DIR", "Also save the frame encoder, for train --frame-encoder."
    ] = None,
    skip_damaged: Annotated[
        bool, "Skip damaged videos instead of using the decodable part."
    ] = False,
) -> None:
    """Compute features of all videos in a folder, with an image model of timm or transformers.

    The same command resumes after any interruption, adds new videos, recomputes changed ones and
    retries failed ones.

    The exit code is 1 if a video was skipped or is damaged.
    """
    if (model is None) == (frame_encoder is None):
        raise typer.BadParameter("pass one image model: --model or --frame-encoder.")
    of_transformers = (model or "").startswith(_HF)
    of_timm = model is not None and not of_transformers
    refuse_idle(
        ("--weights", weights and not of_timm, "a timm model"),
        ("--weights", weights and not pretrained, "--pretrained"),
        ("--random-weights", not pretrained and not of_timm, "a timm model"),
        ("--keep-head", keep_head and not of_timm, "a timm model"),
        ("--mixed-precision", mixed_precision != "no" and model is None, "--model"),
    )
    import torch

    from tmapdiff import video

    place = find_device(device)
    if model is None:
        encoder = video.load_frame_encoder(frame_encoder or "", device=place)
    elif of_transformers:
        encoder = video.TransformersFrameEncoder(
            model.removeprefix(_HF), mixed_precision=mixed_precision, device=place
        )
    else:
        torch.manual_seed(seed)
        encoder = video.FrameEncoder(
            model,
            pretrained=pretrained,
            weights=weights,
            keep_head=keep_head,
            mixed_precision=mixed_precision,
            device=place,
        )
    if save_encoder is not None:
        encoder.save_pretrained(save_encoder)
    with progress("extracting") as advance:
        report = video.extract_features(
            [videos] if videos.is_file() else videos,
            encoder,
            out,
            fps=fps,
            batch_size=batch_size,
            num_workers=workers,
            skip_damaged=skip_damaged,
            on_video=lambda video_id: advance(),
        )
    console.line(str(report))
    console.document({**vars(report), "model": encoder.description, "fps": fps})
    if report.skipped or report.damaged:
        raise typer.Exit(1)
