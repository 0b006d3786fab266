"""Small files that the code blocks of the documentation read."""

import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from helpers.datasets import query_line, write_lines, write_store
from helpers.migration import changed, recording, write_checkpoint

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
    - `make_files_of_others`: files in the forms of other projects
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


# What docs/migration.md reads

QUERIES = ("person opens a door.", "a person sits down.", "person turns a light on.", "they eat.")
DURATIONS = {"AAAAA": 30.0, "BBBBB": 24.5}
MOMENTS = ((2.0, 9.5), (12.0, 20.5))


def make_files_of_others(folder: Path) -> None:
    """Make MS-2D-TAN/, lighthouse/, VSLNet/ and glove.6B.300d.txt, each as its users have it."""
    random = np.random.default_rng(0)
    tensors = recording("ms2dtan-conv")
    width, word_width = tensors["features"].shape[2], tensors["words"].shape[2]
    words = sorted({word for query in QUERIES for word in query.rstrip(".").split()})
    vectors = random.standard_normal((len(words), word_width)).round(3)
    (folder / "glove.6B.300d.txt").write_text(
        "".join(f"{w} {' '.join(map(str, v))}\n" for w, v in zip(words, vectors, strict=True))
    )
    rows = [
        (video, start, end, query)
        for video, (start, end) in zip(DURATIONS, MOMENTS, strict=True)
        for query in QUERIES
    ]
    text = "".join(f"{video} {start} {end}##{query}\n" for video, start, end, query in rows)

    root = folder / "MS-2D-TAN"
    data = root / "data" / "Charades-STA"
    for place in (data, root / "experiments" / "charades", root / "release_checkpoints"):
        place.mkdir(parents=True)
    experiment = changed(
        {
            "TRAIN.MAX_EPOCH": 1,
            "TRAIN.BATCH_SIZE": 4,
            "MODEL.CHECKPOINT": "release_checkpoints/epoch0039-0.5664-0.8825.pkl",
            "MODEL.CLIP_MODULE.PARAMS.INPUT_SIZE": width,
            "MODEL.FUSION_MODULE.PARAMS.TXT_INPUT_SIZE": word_width,
            "DATASET.VIS_INPUT_TYPE": "charades_i3d_rgb_25fps",
        }
    )
    # JSON is yaml.
    name = "MS-2D-TAN-G-I3D.yaml"
    (root / "experiments" / "charades" / name).write_text(json.dumps(experiment, indent=2))
    write_checkpoint(root / experiment["MODEL"]["CHECKPOINT"], tensors)
    with h5py.File(data / "charades_i3d_rgb_25fps.hdf5", "w") as file:
        for video, duration in DURATIONS.items():
            file[video] = random.standard_normal((round(duration / 0.64), width))
    table = "".join(f"{video},,{duration}\n" for video, duration in DURATIONS.items())
    for split in ("train", "test"):
        (data / f"charades_sta_{split}.txt").write_text(text)
        (data / f"Charades_v1_{split}.csv").write_text(f"id,actions,length\n{table}")

    root = folder / "lighthouse"
    place = root / "data" / "charades"
    place.mkdir(parents=True)
    lines = [
        query_line(qid, video, [[start, end]], query, DURATIONS[video])
        for qid, (video, start, end, query) in enumerate(rows, start=12404)
    ]
    write_lines(place / "charades_test_release.jsonl", lines)
    (root / "features" / "charades").mkdir(parents=True)
    for name, channels in (("clip", 4), ("slowfast", 6)):
        # One is a feature longer, as it happens.
        counts = {video: int(one) + (name == "clip") for video, one in DURATIONS.items()}
        arrays = {v: random.standard_normal((n, channels)) for v, n in counts.items()}
        halves = {video: array.astype(np.float16) for video, array in arrays.items()}
        write_store(root / "features" / "charades" / name, "npz", halves)

    root = folder / "VSLNet" / "data"
    place = root / "dataset" / "charades"
    place.mkdir(parents=True)
    lengths = {video: {"duration": duration} for video, duration in DURATIONS.items()}
    (place / "charades.json").write_text(json.dumps(lengths))
    for split in ("train", "test"):
        (place / f"charades_sta_{split}.txt").write_text(text)
    (root / "features" / "charades").mkdir(parents=True)
    counts = {video: int(2 * duration) for video, duration in DURATIONS.items()}
    arrays = {v: random.standard_normal((n, 8)).astype(np.float32) for v, n in counts.items()}
    place = write_store(root / "features" / "charades" / "new", "npy", arrays)
    (place / "feature_shapes.json").write_text(json.dumps(counts))


@pytest.fixture
def folder_of_a_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Working directory with the files of `make_files`."""
    make_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path
