"""Small files that the code blocks of the documentation read."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers.datasets import query_line, write_lines, write_store
from helpers.migration import make_files_of_others

ROOT = Path(__file__).parents[2]
VIDEOS = {"kitchen": 30.0, "garden": 24.0}  # seconds
WORDS = ["a", "person", "opens", "the", "fridge", "drinks", "water", "rakes", "leaves"]


def make_files(folder: Path) -> None:
    """Make the files that the documentation names; docs/guides/your-data.md describes them.

    - `queries.jsonl`: three queries on the videos `kitchen` (30 s) and `garden` (24 s)
    - `more.jsonl`: the same
    - `features.h5`: two features a second of each video, 32 channels
    - `npy/`, `npz/`, `pt/`: the same features in the other forms
    - `clip/`: one feature every half second, 16 channels, as another model's
    - `glove.txt`: word vectors of 8 numbers
    - `run/metrics.json`: what a run of `tmapdiff train` left, made up
    - `helpers.migration.make_files_of_others`: files in the forms of other projects
    - `docs/`: this documentation
    - `model_card_template.md`: the file of that name in `docs`
    """
    queries = (
        ("kitchen", "a person opens the fridge", [[2.0, 6.5]]),
        ("kitchen", "a person drinks water", [[8.0, 12.0], [20.0, 24.0]]),
        ("garden", "a person rakes the leaves", [[5.0, 18.0]]),
    )
    lines = [
        query_line(qid, video, windows, query, VIDEOS[video])
        for qid, (video, query, windows) in enumerate(queries)
    ]
    for name in ("queries", "more"):
        write_lines(folder / f"{name}.jsonl", lines)

    make_files_of_others(folder)
    random = np.random.default_rng(0)
    features, others = {}, {}
    for video, duration in VIDEOS.items():
        for store, width in ((features, 32), (others, 16)):
            store[video] = random.standard_normal((int(2 * duration), width), dtype=np.float32)
    for kind in ("npy", "npz", "pt"):
        write_store(folder / kind, kind, features)
    write_store(folder, "hdf5", features).rename(folder / "features.h5")
    write_store(folder / "clip", "npy", others)
    rows = (f"{word} {' '.join(f'{x:.3f}' for x in random.standard_normal(8))}\n" for word in WORDS)
    (folder / "glove.txt").write_text("".join(rows))

    (folder / "docs").symlink_to(ROOT / "docs")
    shutil.copy(ROOT / "docs" / "model_card_template.md", folder)
    (folder / "run" / "pipeline").mkdir(parents=True)
    names = ("Rank1@0.5", "Rank1@0.7", "Rank5@0.5", "Rank5@0.7", "mIoU")
    metrics = {
        **dict.fromkeys(names, 12.34),
        "num_inference_steps": 2,
        "features": "SIMULATED action timelines",
        "evaluated_on": "synthetic activities (test, seed 0): 203 lines, 203 kept",
        "seed": 0,
        "options": {"preset": "nano", "epochs": None},
        "versions": {"python": "3.12", "tmapdiff": None},
        "git_commit": None,
    }
    (folder / "run" / "metrics.json").write_text(json.dumps(metrics))


@pytest.fixture
def folder_of_a_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Working directory with the files of `make_files`."""
    make_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path
