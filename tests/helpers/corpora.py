"""A small corpus for tests: a pipeline of random weights, features, and tables."""

from pathlib import Path
from typing import Any

import numpy as np
from helpers.pipelines import QUERIES, WORDS, make_localizer

from tmapdiff import MomentLocalizationPipeline, Vocabulary

CHANNELS, RATE = 6, 0.5


def make_corpus(folder: Path, count: int) -> Path:
    """A pipeline of random weights, features of some videos, and tables of videos and queries."""
    localizer = make_localizer(encoder={"clip_channels": CHANNELS}, num_samples=2)
    MomentLocalizationPipeline(localizer, Vocabulary(WORDS)).save_pretrained(folder / "pipeline")
    random = np.random.default_rng(0)
    (folder / "features").mkdir()
    ids = [f"video{index:02}" for index in range(count)]
    for index, name in enumerate(ids):
        features = random.standard_normal((20 + index, CHANNELS)).astype(np.float32)
        np.save(folder / "features" / f"{name}.npy", features)
    durations = [(20 + index) * RATE for index in range(count)]
    write(folder / "videos.parquet", video_id=ids, duration=durations)
    write(folder / "queries.parquet", query_id=[7, 8, 9], query=QUERIES)
    return folder


def write(path: Path, **columns: Any) -> Path:
    """Write a Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table(columns), path)
    return path
