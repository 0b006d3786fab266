"""`tmapdiff localize-corpus`: find moments in many videos, on Ray."""

from pathlib import Path
from typing import Annotated

import typer

from tmapdiff.cli import options
from tmapdiff.cli.output import Output

EXAMPLES = """
tmapdiff localize-corpus runs/vgg/pipeline videos.parquet queries.parquet --out moments
tmapdiff localize-corpus runs/clip/pipeline videos queries.jsonl --out moments --workers 0
tmapdiff localize-corpus runs/vgg/pipeline videos.parquet queries.parquet --out moments \\
    --features vgg16.h5 --workers 8 --steps 4 --samples 4
RAY_ADDRESS=auto tmapdiff localize-corpus /shared/pipeline /shared/videos.parquet \\
    /shared/queries.parquet --out /shared/moments --workers 64 --gpus-per-worker 1
"""


def localize_corpus(
    console: Output,
    pipeline: Annotated[
        Path, typer.Argument(metavar="PIPELINE", help="Folder of a saved pipeline.")
    ],
    videos: Annotated[
        Path,
        typer.Argument(
            metavar="VIDEOS",
            help="Folder of videos, whose ids are their names without suffix; or a table with "
            "columns video_id and path or, with --features, video_id and duration in seconds. "
            "Tables are Parquet files, folders of them, or JSON lines (.jsonl).",
        ),
    ],
    queries: Annotated[
        Path,
        typer.Argument(
            metavar="QUERIES",
            help="Table with columns query_id, query and optionally video_id. Without it, all "
            "queries are searched in all videos.",
        ),
    ],
    out: Annotated[Path, "DIR", "Folder of the Parquet files to write."],
    features: Annotated[
        list[Path] | None, "STORE", "Feature store of the videos; several are concatenated."
    ] = None,
    workers: Annotated[int, "Ray workers; 0 runs everything in this process."] = 2,
    gpus_per_worker: Annotated[float, "GPUs per worker; with 0.5, two workers share one."] = 0.0,
    threads_per_worker: Annotated[int, "Threads per worker."] = 1,
    device: options.DeviceOption = "auto",
    videos_per_file: Annotated[int, "Videos per output file."] = 16,
    batch_size: Annotated[int, "Queries per batch."] = 64,
    steps: options.StepsOption = None,
    samples: options.SamplesOption = None,
    top: options.TopOption = 5,
    seed: options.NoiseSeedOption = 0,
) -> None:
    """Find the moments of many queries in many videos, on several processes or machines.

    It writes Parquet files with ids. For a few videos and JSON lines, use localize.

    The same command resumes after any interruption, and processes added and changed videos.

    The exit code is 1 if a video failed.
    """
    from tmapdiff.corpus import CorpusOptions
    from tmapdiff.corpus import localize_corpus as run

    place: str | None = device
    if workers == 0:
        place = options.find_device(device)
    elif device == "auto":  # workers may have other devices than this machine
        place = None
    report = run(
        pipeline,
        videos,
        queries,
        out,
        features=features or (),
        options=CorpusOptions(num_inference_steps=steps, num_samples=samples, top_n=top, seed=seed),
        num_workers=workers,
        gpus_per_worker=gpus_per_worker,
        threads_per_worker=threads_per_worker,
        device=place,
        videos_per_file=videos_per_file,
        batch_size=batch_size,
        on_file=lambda done, count: console.warning(f"{done} of {count} videos"),
    )
    console.line(str(report))
    for one in report.failed:
        console.warning(f"{one.video_id}: {one.error}")
    console.document({**vars(report), "out": out})
    if report.failed:
        raise typer.Exit(1)
