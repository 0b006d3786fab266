"""Small data sets in the forms of those that are published."""

import json
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np


def write_charades(
    folder: Path,
    train: Sequence[str] = ("AAAAA",),
    test: Sequence[str] = ("BBBBB",),
    actions: str = "c001 1.00 9.00",
    sentences: Sequence[str] = ("a person.", "a person."),
) -> Path:
    """Charades-STA with what `timeline` needs: videos of 30 s in each part."""
    folder.mkdir(exist_ok=True)
    header = "id,subject,scene,quality,relevance,verified,script,objects,descriptions,"
    for split, videos in (("train", train), ("test", test)):
        rows = "".join(f'{one},S,Room,5,5,Yes,s,o,d,"{actions}",30.0\n' for one in videos)
        (folder / f"Charades_v1_{split}.csv").write_text(f"{header}actions,length\n{rows}")
        lines = "".join(f"{one} 1.0 9.0##{text}\n" for one in videos for text in sentences)
        (folder / f"charades_sta_{split}.txt").write_text(lines)
    return folder


def write_didemo(folder: Path) -> Path:
    """DiDeMo with average_fc7.h5; every other video ends after five of its six segments."""
    folder.mkdir(exist_ok=True)
    random = np.random.default_rng(0)
    with h5py.File(folder / "average_fc7.h5", "w") as file:
        for split in ("train", "test"):
            records = []
            for number in range(4):
                segments = 6 - number % 2
                features = random.standard_normal((6, 10))
                features[segments:] = 0
                video = f"{number}@N01_{split}.mov"
                file[video] = features
                times = [[1, 1], [1, 1], [0, 1], [segments - 1, segments - 1]]
                records.append(
                    {
                        "annotation_id": number,
                        "video": video,
                        "description": "a dog runs.",
                        "times": times,
                        "num_segments": segments,
                    }
                )
            (folder / f"{split}_data.json").write_text(json.dumps(records))
    return folder
