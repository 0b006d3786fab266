import json
import os
from pathlib import Path

import pytest

CSV_HEADER = (
    "id,subject,scene,quality,relevance,verified,script,objects,descriptions,actions,length"
)


def csv_row(video_id, length="30.0", actions="c001 0.00 5.00"):
    return f'{video_id},S,Room,5,5,Yes,"A, b.",a;b,c,{actions},{length}'


def write_charades(folder, lines, rows=None, split="train"):
    rows = [csv_row("AAAAA"), csv_row("BBBBB", "20.5", "")] if rows is None else rows
    (folder / f"charades_sta_{split}.txt").write_text("".join(f"{line}\n" for line in lines))
    (folder / f"Charades_v1_{split}.csv").write_text("\n".join([CSV_HEADER, *rows]) + "\n")
    return folder


@pytest.fixture(scope="session")
def charades_root():
    folder = os.environ.get("TMAPDIFF_CHARADES_ROOT")
    if not folder:
        pytest.skip("TMAPDIFF_CHARADES_ROOT names no folder with the Charades files")
    return Path(folder)


@pytest.fixture(scope="session")
def data_root():
    folder = os.environ.get("TMAPDIFF_DATA_ROOT")
    if not folder:
        pytest.skip("TMAPDIFF_DATA_ROOT names no folder with didemo, activitynet, tacos, ...")
    return Path(folder)


@pytest.fixture
def charades(tmp_path):
    return lambda *args, **kwargs: write_charades(tmp_path, *args, **kwargs)


@pytest.fixture
def write(tmp_path):
    """Write a file, of lines if there are several: texts as they are, all else as JSON."""

    def write(name, *contents):
        texts = [one if isinstance(one, str) else json.dumps(one) for one in contents]
        (tmp_path / name).write_text("\n".join(texts))
        return tmp_path / name

    return write
