"""Time the reading of GloVe vectors: the text file the first time, the cache beside it after that.

    python benchmarks/glove.py

Makes up a file of the size of GloVe 6B (400,000 words, 300 numbers each; about 1 GB) in a temporary
folder, and removes it afterwards.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

from tmapdiff.data import Vocabulary, load_glove


def write_vectors(path: Path, words: int, width: int) -> None:
    random = np.random.default_rng(0)
    with path.open("w", encoding="utf-8") as file:
        for first in range(0, words, 10_000):
            block = random.normal(size=(min(10_000, words - first), width))
            for number, row in enumerate(np.char.mod("%.5f", block), start=first):
                file.write(f"word{number} {' '.join(row)}\n")


def seconds_to_load(path: Path, vocabulary: Vocabulary) -> float:
    began = time.perf_counter()
    vectors, found = load_glove(path).rows_for(vocabulary)
    seconds = time.perf_counter() - began
    if found != len(vocabulary) - 2 or not vectors.isfinite().all():  # all but padding, unknown
        raise SystemExit("the vectors read are not the vectors written: nothing was timed")
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--words", type=int, default=400_000, help="(default: 400000)")
    parser.add_argument("--width", type=int, default=300, help="(default: 300)")
    args = parser.parse_args()
    vocabulary = Vocabulary(f"word{n}" for n in range(0, args.words, max(1, args.words // 1000)))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "glove.txt"
        write_vectors(path, args.words, args.width)
        first = seconds_to_load(path, vocabulary)
        again = seconds_to_load(path, vocabulary)
    size = f"{args.words} words x {args.width}, {len(vocabulary)} of them used"
    print(f"{size}: first time {first:.1f} s, again {again:.2f} s")


if __name__ == "__main__":
    main()
