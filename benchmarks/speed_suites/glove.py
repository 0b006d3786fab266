"""Reading of GloVe vectors: first from the text file, then from the cache beside it.

Uses a synthetic file of the size of GloVe 6B (400,000 words, 300 numbers each; about 1 GB).
"""

import shutil
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from speed_cases import Candidate, Case, Contest, TimedCase
from timing import Effort

from speed_suites.setting import Setting
from tmapdiff.data import Vocabulary, load_glove

WORDS, WIDTH, USED = 400_000, 300, 1000


def cases(setting: Setting) -> Iterator[Case]:
    words = 2000 if setting.quick else WORDS
    yield TimedCase(
        "glove",
        "load_glove",
        {"words": words, "width": WIDTH},
        torch.float32,
        partial(_contest, words),
        reference="text",
        effort=Effort(rounds=1, seconds=0, warm_up=1),
    )


def _contest(words: int) -> Contest:
    folder = tempfile.TemporaryDirectory()
    path = Path(folder.name) / "glove.txt"
    write_vectors(path, words)
    used = Vocabulary(f"word{n}" for n in range(0, words, max(1, words // USED)))

    def load(cached: bool) -> None:
        if not cached:
            for cache in {*path.parent.iterdir()} - {path}:
                shutil.rmtree(cache)
        vectors, found = load_glove(path).rows_for(used)
        if found != len(used) - 2 or not vectors.isfinite().all():  # except padding and unknown
            raise RuntimeError("the vectors read are not the vectors written")

    return Contest(
        [Candidate("text", load, [False]), Candidate("cache", load, [True])], close=folder.cleanup
    )


def write_vectors(path: Path, words: int) -> None:
    random = np.random.default_rng(0)
    with path.open("w", encoding="utf-8") as file:
        for first in range(0, words, 10_000):
            block = random.normal(size=(min(10_000, words - first), WIDTH))
            for number, row in enumerate(np.char.mod("%.5f", block), start=first):
                file.write(f"word{number} {' '.join(row)}\n")
