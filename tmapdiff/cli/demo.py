"""`tmapdiff demo`: a page in the browser."""

from pathlib import Path
from typing import Annotated

import typer

from tmapdiff.cli.options import DeviceOption, PipelineOptions
from tmapdiff.cli.output import JsonOption, Output

EXAMPLES = """
tmapdiff demo --model runs/shapes/pipeline --video-dir runs/shapes/videos/test
tmapdiff demo --zero-shot openai/clip-vit-base-patch32 --video-dir holidays
tmapdiff demo --text-encoder all-MiniLM-L6-v2 --video-dir talks --example "where money is spoken of"
tmapdiff demo --model runs/vgg/pipeline --host 0.0.0.0 --port 8080 --max-seconds 120
"""


def demo(
    answering: PipelineOptions,
    video_dir: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder of videos, or with --text-encoder of text tracks, that visitors may pick.",
        ),
    ] = None,
    example: Annotated[
        list[str] | None,
        typer.Option(metavar="SENTENCE", help="Sentence to click; may be given several times."),
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen at; 0.0.0.0 lets other machines in.")
    ] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option(help="Port to listen at; the first free one from 7860 by default.")
    ] = None,
    share: Annotated[bool, typer.Option(help="Ask Gradio's servers for a public address.")] = False,
    max_megabytes: Annotated[float, typer.Option(help="Largest video file.")] = 200.0,
    max_seconds: Annotated[float, typer.Option(help="Longest video.")] = 600.0,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Serve a page: a video, a sentence, and the moments on the player's time line.

    With --text-encoder, a transcript and its lines in place of a video and its player.

    Nothing is reported to anyone, and the page loads nothing from other hosts. Uploads are deleted
    when the page is closed. Stop it with Ctrl+C.
    """
    answering.check()
    with Output(as_json) as output:
        from tmapdiff.demo import DemoLimits, launch_demo

        def say(address: str, public: str | None) -> None:
            output.line(f"serving at {address}" + (f" and {public}" if public else ""))
            output.document({"address": address, "public_address": public})

        limits = DemoLimits(max_megabytes=max_megabytes, max_seconds=max_seconds)
        pipeline = answering.load(device)
        launch_demo(
            pipeline,
            video_dir,
            examples=example or (),
            host=host,
            port=port,
            share=share,
            limits=limits,
            on_start=say,
        )
