"""Measure what localizing a corpus costs: each step of it, and workers against one process.

    python benchmarks/corpus.py
    python benchmarks/corpus.py --preset tiny --videos 48 --queries 64 --json corpus.json

Made-up features, two a second, of videos of a minute, and random weights. Throughput is that of
`tmapdiff.corpus.localize_corpus` between its first file and its last: without the start of Ray and
of its workers, which is given apart. Each way runs in a process of its own.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from tmapdiff import PRESETS, MomentLocalizationPipeline, Vocabulary
from tmapdiff._core.files import written_beside
from tmapdiff.corpus import localize_corpus
from tmapdiff.provenance import describe_run
from tmapdiff.video import VideoFeatures

CHANNELS, SECONDS_A_FEATURE, DURATION = 512, 0.5, 60.0
WORDS = [f"word{index}" for index in range(100)]
WAYS = {  # workers, and threads of each; 0 workers are this process
    "one process, all threads": (0, os.cpu_count() or 1),
    "one process, one thread": (0, 1),
    "two workers of Ray, one thread each": (2, 1),
}


def make_pipeline(preset: str) -> MomentLocalizationPipeline:
    torch.manual_seed(0)
    vocabulary = Vocabulary(WORDS)
    model = PRESETS[preset].build(vocabulary_size=len(vocabulary), clip_channels=CHANNELS)
    return MomentLocalizationPipeline(model.eval(), vocabulary)


def make_sentences(count: int) -> list[str]:
    random = np.random.default_rng(0)
    return [" ".join(random.choice(WORDS, 8)) for _ in range(count)]


def make_corpus(folder: Path, preset: str, videos: int, queries: int) -> None:
    random = np.random.default_rng(0)
    make_pipeline(preset).save_pretrained(folder / "pipeline")
    (folder / "features").mkdir()
    for index in range(videos):
        shape = (int(DURATION / SECONDS_A_FEATURE), CHANNELS)
        features = random.standard_normal(shape).astype(np.float16)
        np.save(folder / "features" / f"{index:06}.npy", features)
    ids = [f"{index:06}" for index in range(videos)]
    table = pa.table({"video_id": ids, "duration": [DURATION] * videos})
    pq.write_table(table, folder / "videos.parquet")
    sentences = make_sentences(queries)
    table = pa.table({"query_id": list(map(str, range(queries))), "query": sentences})
    pq.write_table(table, folder / "queries.parquet")


def run(folder: Path, output: Path, workers: int, threads: int) -> dict[str, float]:
    """Localize it, with pairs a second between the first file and the last."""
    times: list[tuple[float, int]] = []
    began = time.perf_counter()
    report = localize_corpus(
        folder / "pipeline",
        folder / "videos.parquet",
        folder / "queries.parquet",
        output,
        features=[folder / "features"],
        num_workers=workers,
        threads_per_worker=threads,
        videos_per_file=1,
        on_file=lambda done, count: times.append((time.perf_counter(), done)),
    )
    (first, done_first), (last, done_last) = times[max(1, workers) - 1], times[-1]
    each = report.pairs / report.videos
    return {
        "pairs": report.pairs,
        "pairs_a_second": (done_last - done_first) * each / (last - first),
        "seconds": report.seconds,
        "seconds_to_first_file": times[0][0] - began,
        "bytes_a_pair": sum(p.stat().st_size for p in output.glob("*.parquet")) / report.pairs,
    }


def run_apart(folder: Path, way: str) -> dict[str, float]:
    workers, threads = WAYS[way]
    with tempfile.TemporaryDirectory() as output:
        command = [sys.executable, __file__, "--one", str(folder), output, str(workers)]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        done = subprocess.run(
            [*command, str(threads)], stdout=subprocess.PIPE, text=True, check=True, env=environment
        )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure_steps(preset: str, queries: int) -> dict[str, float]:
    """Seconds of one thread: of a video, of a query, and of both together."""
    torch.set_num_threads(1)
    pipe = make_pipeline(preset)
    pipe.set_progress_bar_config(disable=True)
    model, encoder = pipe.localizer, pipe.localizer.encoder
    random = torch.Generator().manual_seed(0)
    features = torch.randn(int(DURATION / SECONDS_A_FEATURE), CHANNELS, generator=random)
    video = VideoFeatures(features, SECONDS_A_FEATURE, DURATION)
    clips = pipe._clips(video, None).features[None]
    sentences = make_sentences(queries)
    words = torch.stack(pipe.encode_queries(sentences))
    lengths = torch.full((queries,), words.shape[1])
    with torch.no_grad():
        maps = encoder.encode_video(clips)
        many = [one.expand(queries, *one.shape[1:]) for one in maps]
        encoded = encoder.text_encoder(words, lengths)
        fused = encoder.fuse(many, encoded)
        samples = model.draw_samples(fused, model.config.num_samples).mean(dim=1)
        seconds = torch.full((queries,), DURATION / model.grid.num_clips)
        return {
            "video: map features": _seconds(lambda: encoder.encode_video(clips)),
            "query: words": _seconds(lambda: encoder.text_encoder(words, lengths)) / queries,
            "pair: fusion": _seconds(lambda: encoder.fuse(many, encoded)) / queries,
            "pair: denoising": _seconds(lambda: model.draw_samples(fused, model.config.num_samples))
            / queries,
            "pair: ranking": _seconds(lambda: model.read_moments(samples, seconds)) / queries,
            "pair: all, through the pipeline": _seconds(
                lambda: pipe(video, sentences, batch_size=queries)
            )
            / queries,
        }


def _seconds(run: Callable[[], object], repeats: int = 5) -> float:
    run()
    times = []
    for _ in range(repeats):
        began = time.process_time()
        run()
        times.append(time.process_time() - began)
    return sorted(times)[len(times) // 2]


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--preset", choices=list(PRESETS), default="tiny", help="(default: tiny)")
    add("--videos", type=int, default=48, help="(default: 48)")
    add("--queries", type=int, default=64, help="of each video (default: 64)")
    add("--json", type=Path, help="file to write the result to")
    add("--one", nargs=4, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    args = parse_arguments(arguments)
    if args.one:
        folder, output, workers, threads = args.one
        found = run(Path(folder), Path(output), int(workers), int(threads))
        print(json.dumps(found))
        return
    result: dict[str, Any] = {"steps": measure_steps(args.preset, args.queries)}
    print(f"preset {args.preset}, one thread\n\n| step | milliseconds |\n| --- | --- |")
    for name, seconds in result["steps"].items():
        print(f"| {name} | {1e3 * seconds:.2f} |")
    print("\n| | pairs a second | first file after, s | all, s |\n| --- | --- | --- | --- |")
    result["ways"] = {}
    with tempfile.TemporaryDirectory() as folder:
        make_corpus(Path(folder), args.preset, args.videos, args.queries)
        for way in WAYS:
            found = result["ways"][way] = run_apart(Path(folder), way)
            start, everything = found["seconds_to_first_file"], found["seconds"]
            print(f"| {way} | {found['pairs_a_second']:.1f} | {start:.1f} | {everything:.1f} |")
    print(f"\n{found['bytes_a_pair']:.0f} bytes a pair in Parquet")
    if args.json:
        with written_beside(args.json) as new:
            text = json.dumps({**result, **describe_run(str(Path(__file__).parent))}, indent=2)
            new.write_text(text + "\n")


if __name__ == "__main__":
    main()
