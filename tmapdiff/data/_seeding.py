"""Random streams that are the same in every process and on every machine."""

import hashlib

import numpy as np


def generator_for(*parts: object) -> np.random.Generator:
    """Return a generator that depends on `parts`, such as a seed and a video id, alone.

    Python's own `hash` differs from process to process.
    """
    digest = hashlib.sha256("\0".join(map(str, parts)).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest, "little"))
