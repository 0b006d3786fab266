"""`tmapdiff localize-corpus`: many queries in many videos, on Ray."""

from pathlib import Path
from typing import Annotated

import typer

from tmapdiff.cli import options
from tmapdiff.cli.output import JsonOption, Output

EXAMPLES = """
tmapdiff localize-corpus runs/vgg/pipeline videos.parquet queries.parquet --out moments
tmapdiff localize-corpus runs/clip/pipeline videos queries.jsonl --out moments --workers 0
tmapdiff localize-corpus runs/vgg/pipeline videos.parquet queries.parquet --out moments \\
    --features vgg16.h5 --workers 8 --steps 4 --samples 4
RAY_ADDRESS=auto tmapdiff localize-corpus /shared/pipeline /shared/videos.parquet \\
    /shared/queries.parquet --out /shared/moments --workers 64 --gpus-per-worker 1
"""


def localize_corpus(
    pipeline: Annotated[
        Path, typer.Argument(metavar="PIPELINE", help="Folder of a saved pipeline.")
    ],
    videos: Annotated[
        Path,
        typer.Argument(
            metavar="VIDEOS",
            help="Folder of videos, whose ids are their names without suffix; or a table with "
            "columns video_id and path, or with --features video_id and duration, in seconds. "
            "Tables are Parquet files, folders of such, or JSON lines (.jsonl).",
        ),
    ],
    queries: Annotated[
        Path,
        typer.Argument(
            metavar="QUERIES",
            help="Table with columns query_id and query; and video_id, if each is asked of one "
            "video, else all are asked of all.",
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the Parquet files to write.")],
    features: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="STORE", help="Feature store of the videos; several are put side by side."
        ),
    ] = None,
    workers: Annotated[
        int, typer.Option(help="Ray's workers; 0 does everything in this process.")
    ] = 2,
    gpus_per_worker: Annotated[
        float, typer.Option(help="GPUs of each worker; with 0.5, two share one.")
    ] = 0.0,
    threads_per_worker: Annotated[int, typer.Option(help="Threads of each worker.")] = 1,
    device: options.DeviceOption = "auto",
    videos_per_file: Annotated[int, typer.Option(help="Videos written together.")] = 16,
    batch_size: Annotated[int, typer.Option(help="Queries at a time.")] = 64,
    steps: options.StepsOption = None,
    samples: options.SamplesOption = None,
    top: Annotated[int, typer.Option(help="Moments per query, at most.")] = 5,
    seed: options.NoiseSeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Find the moments of many queries in many videos, by several processes or machines.

    It writes Parquet files that have ids. To ask sentences of a few videos, and to have answers as
    JSON lines, use localize, which takes folders, too.

    Interrupted, even killed, the same command goes on where it was. It also does videos that were
    added.

    The exit code is 1 if a video failed.
    """
    with Output(as_json) as output:
        from tmapdiff.corpus import CorpusOptions
        from tmapdiff.corpus import localize_corpus as run

        place: str | None = device
        if workers == 0:
            place = options.find_device(device)
        elif device == "auto":  # what workers see may not be what this machine has
            place = None
        report = run(
            pipeline,
            videos,
            queries,
            out,
            features=features or (),
            options=CorpusOptions(
                num_inference_steps=steps, num_samples=samples, top_n=top, seed=seed
            ),
            num_workers=workers,
            gpus_per_worker=gpus_per_worker,
            threads_per_worker=threads_per_worker,
            device=place,
            videos_per_file=videos_per_file,
            batch_size=batch_size,
            on_file=lambda done, count: output.warning(f"{done} of {count} videos"),
        )
        output.line(str(report))
        for one in report.failed:
            output.warning(f"{one.video_id}: {one.error}")
        output.document({**vars(report), "out": out})
    if report.failed:
        raise typer.Exit(1)
