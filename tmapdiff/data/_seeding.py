"""Random streams that are the same in every process and on every machine."""

import hashlib

import numpy as np
import torch


def generator_for(*parts: object) -> np.random.Generator:
    """Return a generator that depends on `parts`, such as a seed and a video id, alone.

    Python's own `hash` differs from process to process.
    """
    digest = hashlib.sha256("\0".join(map(str, parts)).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest, "little"))


def torch_generator_for(
    seed: int, position: int, device: torch.device | str = "cpu"
) -> torch.Generator:
    """Return a generator for the random numbers of one query of a run.

    Args:
        seed: Seed of the run.
        position: Position of the query in it.
        device: Where it draws.
    """
    # Generators seeded with neighbouring numbers are independent enough; a large prime keeps the
    # seeds of two runs apart.
    return torch.Generator(device).manual_seed((seed * 1_000_000_007 + position) % 2**63)
