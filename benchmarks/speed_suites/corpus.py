"""Localizing a corpus with workers of Ray, compared with one process.

Features are random, two per second, for videos of a minute; weights are random. Throughput is that
of `tmapdiff.corpus.localize_corpus` between its first file and its last. The start of Ray and its
workers is a separate case.
"""

import os
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from speed_cases import Candidate, Case, Contest, TimedCase
from timing import Effort

from speed_suites.setting import Setting, find_preset
from tmapdiff import MomentLocalizationPipeline, Vocabulary
from tmapdiff.corpus import localize_corpus

CHANNELS, SECONDS_PER_FEATURE, DURATION = 512, 0.5, 60.0
WORDS = [f"word{index}" for index in range(100)]
WAYS = {  # (workers, threads of each); 0 workers: in this process
    "one process, one thread": (0, 1),
    "one process, all threads": (0, os.cpu_count() or 1),
    "two workers of Ray, one thread each": (2, 1),
}


def cases(setting: Setting) -> Iterator[Case]:
    """Measure each way to localize a corpus."""
    name = setting.preset or ("nano" if setting.quick else "tiny")
    videos, queries = (4, 3) if setting.quick else (48, 64)
    for part in ("from the first file to the last", "until the first file"):
        yield TimedCase(
            "corpus",
            part,
            {"preset": name, "videos": videos, "queries": queries},
            torch.float32,
            partial(_contest, setting, name, videos, queries, part.startswith("until")),
            reference=next(iter(WAYS)),
            effort=Effort(rounds=1, seconds=0, warm_up=0),
        )


def make_corpus(folder: Path, preset: str, videos: int, queries: int) -> None:
    """Write a pipeline, features, and tables of videos and queries."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    random, vocabulary = np.random.default_rng(0), Vocabulary(WORDS)
    sizes = {"vocabulary_size": len(vocabulary), "clip_channels": CHANNELS}
    model = find_preset(preset).build(**sizes).eval()
    MomentLocalizationPipeline(model, vocabulary).save_pretrained(folder / "pipeline")
    (folder / "features").mkdir()
    ids = [f"{index:06}" for index in range(videos)]
    for video_id in ids:
        features = random.standard_normal((int(DURATION / SECONDS_PER_FEATURE), CHANNELS))
        np.save(folder / "features" / f"{video_id}.npy", features.astype(np.float16))
    table = pa.table({"video_id": ids, "duration": [DURATION] * videos})
    pq.write_table(table, folder / "videos.parquet")
    sentences = [" ".join(random.choice(WORDS, 8)) for _ in range(queries)]
    table = pa.table({"query_id": list(map(str, range(queries))), "query": sentences})
    pq.write_table(table, folder / "queries.parquet")


def localize(folder: Path, way: str) -> tuple[float, float]:
    """Localize the corpus; return seconds until the first file, and from there to the last."""
    workers, threads = WAYS[way]
    began, times = time.perf_counter(), []
    before = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as output:
        localize_corpus(
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
    torch.set_num_threads(before)
    if workers:
        import ray

        ray.shutdown()
    # Every worker has finished its first file by then.
    (first, done_first), (last, done_last) = times[max(1, workers) - 1], times[-1]
    return times[0][0] - began, (last - first) * done_last / (done_last - done_first)


def _contest(
    setting: Setting, preset: str, videos: int, queries: int, until_first: bool
) -> Contest:
    scratch = tempfile.TemporaryDirectory()
    folder = Path(scratch.name)
    make_corpus(folder, preset, videos, queries)

    def run(way: str) -> float:
        until, between = localize(folder, way)
        return until if until_first else between

    candidates = [
        Candidate(way, run, [way], items=videos * queries, times_itself=True)
        for way, (workers, _) in WAYS.items()
        if not (workers and setting.quick)
    ]
    return Contest(candidates, close=scratch.cleanup)
