"""Small data sets in the forms of those that are published."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch


def query_line(
    qid: int | str = 0,
    video: str = "v",
    windows: Sequence[Sequence[float]] = ((0, 3),),
    query: str = "a dog",
    duration: float = 9.0,
) -> dict[str, Any]:
    """Return a query in the form of QVHighlights."""
    about = {"qid": qid, "query": query, "vid": video, "duration": duration}
    return {**about, "relevant_windows": windows}


def didemo_record(
    number: int = 0,
    video: str = "v",
    times: Sequence[Sequence[int]] = ((0, 0),),
    segments: int = 6,
    sentence: str = "a dog",
) -> dict[str, Any]:
    """Return a query in the form of DiDeMo."""
    about = {"annotation_id": number, "video": video, "description": sentence}
    return {**about, "num_segments": segments, "times": times}


def write_lines(path: Path, lines: Iterable[Any]) -> Path:
    """Write lines of JSON."""
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def write_store(folder: Path, kind: str, arrays: Mapping[str, np.ndarray]) -> Path:
    """Write features of each video as `hdf5`, `npy`, `npz` or `pt`, and return their place."""
    folder.mkdir(exist_ok=True)
    if kind == "hdf5":
        with h5py.File(folder / "rgb.hdf5", "w") as file:
            for name, array in arrays.items():
                file[name] = array
        return folder / "rgb.hdf5"
    for name, array in arrays.items():
        path = folder / f"{name}.{kind}"
        if kind == "npy":
            np.save(path, array)
        elif kind == "npz":
            np.savez(path, features=array)
        else:
            torch.save(torch.from_numpy(array.astype(array.dtype.newbyteorder("="))), path)
    return folder


def charades_row(video_id: str, length: str = "30.0", actions: str = "c001 0.00 5.00") -> str:
    """Return a video as in Charades' csv, with a comma in its script."""
    return f'{video_id},S,Room,5,5,Yes,"A, b.",a;b,c,{actions},{length}'


def write_charades_split(
    folder: Path, lines: Iterable[str], rows: Iterable[str], split: str = "train"
) -> Path:
    """Write the sentences and videos of one part of Charades-STA."""
    header = "id,subject,scene,quality,relevance,verified,script,objects,descriptions,"
    table = "\n".join([f"{header}actions,length", *rows])
    (folder / f"Charades_v1_{split}.csv").write_text(f"{table}\n")
    (folder / f"charades_sta_{split}.txt").write_text("".join(f"{line}\n" for line in lines))
    return folder


def write_charades(
    folder: Path,
    train: Sequence[str] = ("AAAAA",),
    test: Sequence[str] = ("BBBBB",),
    actions: str = "c001 1.00 9.00",
    sentences: Sequence[str] = ("a person.", "a person."),
) -> Path:
    """Charades-STA with what `timeline` needs: videos of 30 s in each part."""
    folder.mkdir(exist_ok=True)
    for split, videos in (("train", train), ("test", test)):
        lines = [f"{one} 1.0 9.0##{text}" for one in videos for text in sentences]
        rows = [charades_row(one, actions=actions) for one in videos]
        write_charades_split(folder, lines, rows, split)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """Read all files of a folder, by their place in it."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
