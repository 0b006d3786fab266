"""`tmapdiff demo`: serve a web page."""

from pathlib import Path
from typing import Annotated

from tmapdiff.cli.options import DeviceOption, PipelineOptions
from tmapdiff.cli.output import Output

EXAMPLES = """
tmapdiff demo --model runs/shapes/pipeline --video-dir runs/shapes/videos/test
tmapdiff demo --zero-shot openai/clip-vit-base-patch32 --video-dir holidays
tmapdiff demo --text-encoder sentence-transformers/all-MiniLM-L6-v2 --video-dir talks \
    --example "where the budget is decided"
tmapdiff demo --model runs/vgg/pipeline --host 0.0.0.0 --port 8080 --max-seconds 120
"""


def demo(
    console: Output,
    answering: PipelineOptions,
    video_dir: Annotated[
        Path | None, "DIR", "Folder of videos to offer; with --text-encoder, of text tracks."
    ] = None,
    example: Annotated[list[str] | None, "SENTENCE", "Example sentence; can be repeated."] = None,
    host: Annotated[str, "Address to listen on; 0.0.0.0 allows other machines."] = "127.0.0.1",
    port: Annotated[int | None, "Port to listen on. [default: first free one from 7860]"] = None,
    share: Annotated[bool, "Get a public URL from Gradio's servers."] = False,
    max_megabytes: Annotated[float, "Largest upload, in MB."] = 200.0,
    max_seconds: Annotated[float, "Longest video, in seconds."] = 600.0,
    device: DeviceOption = "auto",
) -> None:
    """Serve a web page that finds moments in videos, or with --text-encoder in transcripts.

    There is no telemetry, and the page loads nothing from other hosts. Uploads are deleted after a
    day, and when the server stops. Stop with Ctrl+C.
    """
    from tmapdiff.demo import DemoLimits, launch_demo

    def say(address: str, public: str | None) -> None:
        console.line(f"serving at {address}" + (f" and {public}" if public else ""))
        console.document({"address": address, "public_address": public})

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
