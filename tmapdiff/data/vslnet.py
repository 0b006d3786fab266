"""Datasets in the files of VSLNet."""

import os
from pathlib import Path
from typing import Literal

from tmapdiff._core.checks import check_choice
from tmapdiff.data._reading import number, videos
from tmapdiff.data.activitynet import load_activitynet_captions, load_tacos
from tmapdiff.data.annotations import AnnotationSet
from tmapdiff.data.charades import read_sta

VSLNetTask = Literal["charades", "activitynet", "tacos"]

# For ActivityNet Captions, VSLNet tests on val_1 and validates on val_2.
_FILES = {
    "charades": {"train": "charades_sta_train.txt", "test": "charades_sta_test.txt"},
    "activitynet": {"train": "train.json", "val": "val_2.json", "test": "val_1.json"},
    "tacos": {"train": "train.json", "val": "val.json", "test": "test.json"},
}


def load_vslnet(
    root: str | os.PathLike[str], task: VSLNetTask, split: Literal["train", "val", "test"]
) -> AnnotationSet:
    """Load the sentences and moments of a dataset in the files of VSLNet.

    Moments are clipped to the video and dropped if empty then, while VSLNet trains on them. `qid`
    is the position among the kept sentences, from 0. VSLNet's training file of Charades-STA differs
    from the official one: it has other moments in the four lines with empty ones, so that all
    12,408 lines remain.

    Args:
        root: VSLNet's folder `data/dataset/{task}`.
        task: VSLNet's name of the dataset.
        split: VSLNet's name of the split. Charades-STA has no `val`; for ActivityNet Captions,
            `val` is `val_2.json` and `test` is `val_1.json`.

    Raises:
        FileError, AnnotationError: As `load_charades_sta` and `load_activitynet_captions`.
        ConfigError: If the task or its split is unknown.

    Source: Zhang et al., "Span-based Localizing Network", arXiv 2004.13931; `util/data_gen.py` of
    github.com/26hzhang/VSLNet.
    """
    files = _FILES[check_choice("load_vslnet", "task", task, _FILES)]
    path = Path(root) / files[check_choice("load_vslnet", "split", split, files)]
    if task == "activitynet":
        return load_activitynet_captions(path)
    if task == "tacos":
        return load_tacos(path)
    lengths = Path(root) / "charades.json"
    durations = {
        video_id: number(who, record, "duration", above=0)
        for who, video_id, record in videos(lengths)
    }
    return read_sta(path, durations, lengths.name)
