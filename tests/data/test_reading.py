"""What all loaders of annotations do alike, tried with each format."""

import gzip
import json
from typing import Any, NamedTuple

import pytest
from helpers.assertions import kinds, refuses
from helpers.datasets import charades_row, query_line, write_charades_split, write_lines

from tmapdiff.data import (
    load_activitynet_captions,
    load_annotations,
    load_charades_sta,
    load_moment_jsonl,
    load_tacos,
    load_vslnet,
    read_submission,
)
from tmapdiff.errors import AnnotationError, FileError, TmapdiffError
from tmapdiff.inspection import inspect

DURATION = 10.0


class Format(NamedTuple):
    """How a folder with one split in a format is written and read."""

    write: Any
    load: Any
    name: str


def _charades(folder, moments):
    lines = [f"A {start} {end}##a dog." for start, end in moments]
    write_charades_split(folder, lines, [charades_row("A", f"{DURATION}")])


def _vslnet(folder, moments):
    _charades(folder, moments)
    (folder / "Charades_v1_train.csv").unlink()
    (folder / "charades.json").write_text(json.dumps({"A": {"duration": DURATION}}))


def _by_video(**fields):
    def write(folder, moments):
        record = {**fields, "timestamps": moments, "sentences": ["a dog."] * len(moments)}
        (folder / "train.json").write_text(json.dumps({"A": record}))

    return write


def _jsonl(folder, moments):
    lines = (query_line(n, windows=[one], duration=DURATION) for n, one in enumerate(moments))
    write_lines(folder / "train.jsonl", lines)


_captions, _tacos = _by_video(duration=DURATION), _by_video(fps=1, num_frames=DURATION)
_STA, _JSON, _LINES = "charades_sta_train.txt", "train.json", "train.jsonl"
FORMATS = {
    "charades-sta": Format(_charades, lambda one: load_charades_sta(one, "train"), _STA),
    "vslnet": Format(_vslnet, lambda one: load_vslnet(one, "charades", "train"), _STA),
    "activitynet": Format(
        _captions, lambda one: load_activitynet_captions(one, "train"), "train.json"
    ),
    "tacos": Format(_tacos, lambda one: load_tacos(one, "train"), _JSON),
    "moment-jsonl": Format(
        _jsonl, lambda one: load_moment_jsonl(one / "train.jsonl"), "train.jsonl"
    ),
}


@pytest.fixture(params=FORMATS)
def format(request):
    return FORMATS[request.param]


def test_both_ends_are_cut_to_the_video_and_counted(tmp_path, format):
    moments = [(-0.04, 3.0), (2.0, 10.5), (-1.0, 11.0), (1.0, 2.0), (-2.0, -1.0), (12.0, 13.0)]
    format.write(tmp_path, moments)
    found = format.load(tmp_path)
    assert [item.moments for item in found] == [
        ((0.0, 3.0),), ((2.0, 10.0),), ((0.0, 10.0),), ((1.0, 2.0),),
    ]  # fmt: skip
    report = found.report
    assert (report.lines, report.kept, report.cut_starts, report.cut_ends) == (6, 4, 2, 2)
    assert report.dropped == {
        "ends before the video's start": (5,),
        "starts after the video's end": (6,),
    }
    told = "2 starts clipped to 0; 2 ends clipped to the video's end; 1 moments dropped"
    assert told in str(report)
    found = kinds(inspect(tmp_path / format.name))
    assert {"moments before the start", "moments past the end", "moments left out"} <= found.keys()


@pytest.mark.parametrize("order", ["utf-16", "utf-16-le", "utf-16-be"])
def test_a_file_in_utf_16_is_named_with_its_line(tmp_path, format, order):
    format.write(tmp_path, [(1.0, 2.0)])
    path = tmp_path / format.name
    path.write_bytes(path.read_text().encode(order))
    for read in (lambda: format.load(tmp_path), lambda: load_annotations(path)):
        with refuses(TmapdiffError, f"{path}"):
            read()
    if order == "utf-16":
        hint = "The file is UTF-16: save it as UTF-8."
        text = f"{path} line 1: expected UTF-8 text, got the byte 0xff. {hint}"
        for read in (lambda: format.load(tmp_path), lambda: load_annotations(tmp_path, "train")):
            with refuses(AnnotationError, text):
                read()
        if path.suffix == ".json":  # others are told by their names
            with refuses(FileError, text):
                inspect(path)


def test_a_json_file_of_something_else_does_not_matter_beside(tmp_path):
    FORMATS["activitynet"].write(tmp_path, [(1.0, 2.0)])
    (tmp_path / "notes.json").write_bytes("{}".encode("utf-16"))
    assert len(load_annotations(tmp_path, "train")) == 1


def test_a_submission_in_utf_16_is_named_with_its_line(tmp_path):
    path = tmp_path / "answers.jsonl"
    path.write_bytes('{"qid": 1}'.encode("utf-16"))
    with refuses(AnnotationError, f"{path} line 1: expected UTF-8 text", "The file is UTF-16"):
        read_submission(path)


def test_a_compressed_file_is_to_be_unpacked(tmp_path, format):
    format.write(tmp_path, [(1.0, 2.0)])
    path = tmp_path / format.name
    path.write_bytes(gzip.compress(path.read_bytes()))
    hint = "got the byte 0x8b. The file is compressed: unpack it with gunzip."
    with refuses(AnnotationError, f"{path} line 1: expected UTF-8 text, {hint}"):
        format.load(tmp_path)


def test_durations_without_end_name_the_place(tmp_path):
    # In TACoS, a number of frames over a rate.
    _by_video(fps=1e-300, num_frames=1e300)(tmp_path, [(0, 1)])
    with refuses(AnnotationError, f"{tmp_path / 'train.json'}, video 'A': "):
        load_tacos(tmp_path / "train.json")


def test_no_repeated_field_is_lost(tmp_path):
    video = '"v": {"duration": 9, "timestamps": [[0, 5]], "sentences": ["a dog barks"]}'
    (tmp_path / "train.json").write_text(f"{{{video}, {video}}}")
    with refuses(AnnotationError, "train.json: expected JSON, got the field 'v' twice."):
        load_annotations(tmp_path / "train.json")
