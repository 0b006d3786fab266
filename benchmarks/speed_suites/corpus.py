"""Cost of localizing a corpus: of each step, and with workers compared with one process.

Features are random, two per second, for videos of a minute; weights are random. Throughput is that
of `tmapdiff.corpus.localize_corpus` between its first file and its last. The start of Ray and its
workers is a separate case.
"""

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch
from speed_cases import Candidate, Case, Contest, TimedCase
from timing import Effort

from speed_suites.setting import Setting, find_preset
from tmapdiff import MomentLocalizationPipeline, Vocabulary
from tmapdiff.corpus import localize_corpus
from tmapdiff.video import VideoFeatures

CHANNELS, SECONDS_PER_FEATURE, DURATION = 512, 0.5, 60.0
WORDS = [f"word{index}" for index in range(100)]
WAYS = {  # (workers, threads of each); 0 workers: in this process
    "one process, one thread": (0, 1),
    "one process, all threads": (0, os.cpu_count() or 1),
    "two workers of Ray, one thread each": (2, 1),
}


def cases(setting: Setting) -> Iterator[Case]:
    """Measure the steps, and each way to localize a corpus."""
    name = setting.preset or ("nano" if setting.quick else "tiny")
    videos, queries = (4, 3) if setting.quick else (48, 64)
    ways = [way for way in WAYS if not setting.quick or WAYS[way][0] == 0]
    yield TimedCase(
        "corpus",
        "steps, one thread",
        {"preset": name, "queries": queries},
        torch.float32,
        partial(_steps, name, queries),
        reference="pair: denoising",
    )
    for part in ("from the first file to the last", "until the first file"):
        yield TimedCase(
            "corpus",
            part,
            {"preset": name, "videos": videos, "queries": queries},
            torch.float32,
            partial(_ways, name, videos, queries, ways, part.startswith("until")),
            reference=next(iter(WAYS)),
            effort=Effort(rounds=1, seconds=0, warm_up=0),
        )


def make_pipeline(preset: str) -> MomentLocalizationPipeline:
    vocabulary = Vocabulary(WORDS)
    sizes = {"vocabulary_size": len(vocabulary), "clip_channels": CHANNELS}
    return MomentLocalizationPipeline(find_preset(preset).build(**sizes).eval(), vocabulary)


def make_sentences(count: int) -> list[str]:
    random = np.random.default_rng(0)
    return [" ".join(random.choice(WORDS, 8)) for _ in range(count)]


def make_corpus(folder: Path, preset: str, videos: int, queries: int) -> None:
    """Write a pipeline, features, and tables of videos and queries."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    random = np.random.default_rng(0)
    make_pipeline(preset).save_pretrained(folder / "pipeline")
    (folder / "features").mkdir()
    ids = [f"{index:06}" for index in range(videos)]
    for video_id in ids:
        features = random.standard_normal((int(DURATION / SECONDS_PER_FEATURE), CHANNELS))
        np.save(folder / "features" / f"{video_id}.npy", features.astype(np.float16))
    table = pa.table({"video_id": ids, "duration": [DURATION] * videos})
    pq.write_table(table, folder / "videos.parquet")
    sentences = make_sentences(queries)
    table = pa.table({"query_id": list(map(str, range(queries))), "query": sentences})
    pq.write_table(table, folder / "queries.parquet")


def localize(folder: Path, way: str) -> tuple[float, float]:
    """Localize the corpus; return seconds until the first file, and from there to the last."""
    workers, threads = WAYS[way]
    began, times = time.perf_counter(), []
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
    if workers:
        import ray

        ray.shutdown()
    # Every worker has finished its first file by then.
    (first, done_first), (last, done_last) = times[max(1, workers) - 1], times[-1]
    return times[0][0] - began, (last - first) * done_last / (done_last - done_first)


def _ways(preset: str, videos: int, queries: int, ways: list[str], until_first: bool) -> Contest:
    scratch = tempfile.TemporaryDirectory()
    folder, pairs = Path(scratch.name), videos * queries
    make_corpus(folder, preset, videos, queries)

    def run(way: str) -> float:
        until, between = localize(folder, way)
        return until if until_first else between

    candidates = [
        Candidate(way, run, [way], one_thread, items=pairs, times_itself=True) for way in ways
    ]
    return Contest(candidates, close=scratch.cleanup)


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute without gradients, at first in one thread; restore the number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.no_grad():
            yield
    finally:
        torch.set_num_threads(before)


def _steps(preset: str, queries: int) -> Contest:
    pipe = make_pipeline(preset)
    pipe.set_progress_bar_config(disable=True)
    model, encoder = pipe.localizer, pipe.localizer.encoder
    video = VideoFeatures(
        torch.randn(int(DURATION / SECONDS_PER_FEATURE), CHANNELS), SECONDS_PER_FEATURE, DURATION
    )
    clips = pipe._clips(video, None).features[None]
    sentences = make_sentences(queries)
    words = torch.stack(pipe.encode_queries(sentences))
    lengths = torch.full((queries,), words.shape[1])
    with torch.no_grad():
        maps = [one.expand(queries, *one.shape[1:]) for one in encoder.encode_video(clips)]
        encoded = encoder.text_encoder(words, lengths)
        fused = encoder.fuse(maps, encoded)
        samples = model.draw_samples(fused, model.config.num_samples).mean(dim=1)
    seconds = torch.full((queries,), DURATION / model.grid.num_clips)
    steps = {
        "video: map features": (1, lambda: encoder.encode_video(clips)),
        "query: words": (queries, lambda: encoder.text_encoder(words, lengths)),
        "pair: fusion": (queries, lambda: encoder.fuse(maps, encoded)),
        "pair: denoising": (queries, lambda: model.draw_samples(fused, model.config.num_samples)),
        "pair: ranking": (queries, lambda: model.read_moments(samples, seconds)),
    }

    return Contest(
        [
            Candidate(name, lambda given: given(), [run], one_thread, items=items)
            for name, (items, run) in steps.items()
        ]
    )
