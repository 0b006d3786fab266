import pytest
from helpers.assertions import refuses
from helpers.datasets import query_line

from tmapdiff.data import load_moment_jsonl
from tmapdiff.errors import AnnotationError, FileError

WINDOWS = [[82, 160], [3, 3], [4.5, 10]]
LINES = [
    {
        **query_line(25, "NUs_0.0_150.0", WINDOWS, "A girl cooks.", 150),
        **{"relevant_clip_ids": [1], "saliency_scores": [[1, 1, 2]]},
    },
    query_line("b", windows=[[5, 5]], duration=20.5),
]


def test_several_windows_a_query(write):
    found = load_moment_jsonl(write("val.jsonl", LINES[0], "", LINES[1], "", ""))
    (item,) = found
    assert (item.qid, item.video_id, item.query) == (25, "NUs_0.0_150.0", "A girl cooks.")
    assert item.moments == ((82.0, 150.0), (4.5, 10.0))
    report = found.report
    assert (report.lines, report.kept, report.cut_ends) == (2, 1, 1)
    assert report.dropped == {"start not before end": (1, 3)}


def changed(**fields):
    return {**LINES[0], **fields}


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("{", "val.jsonl line 2: expected JSON, got "),
        ("3", "line 2: expected an object with the field 'qid', got 3."),
        (changed(qid=None), "line 2: expected qid to be an integer or text, got None."),
        (changed(qid=True), "line 2: expected qid to be an integer or text, got True."),
        (changed(qid="b", query=7), "line 2: expected a sentence, got 7."),
        (changed(duration=[]), "line 2: expected duration to be a number > 0, got []."),
        (changed(vid=None), "val.jsonl line 2: expected a video id as text, got None."),
        (changed(vid=0), "val.jsonl line 2: expected a video id as text, got 0."),
        (changed(relevant_windows=[3]), "[start, end] in relevant_windows to be 2 numbers, got 3."),
        (changed(relevant_windows=[[1, "2"]]), "[start, end] in relevant_windows to be 2 numbers"),
        (LINES[0], "val.jsonl line 2: expected a unique qid, got 25 again, as in line 1."),
    ],
)
def test_refuses_other_lines(write, line, text):
    with refuses(AnnotationError, text):
        load_moment_jsonl(write("val.jsonl", LINES[0], line, ""))


def test_refuses_a_set_without_labels(write, tmp_path):
    unlabelled = {name: LINES[0][name] for name in ("qid", "query", "duration", "vid")}
    text = "line 1: expected the field 'relevant_windows', got none. A file without moments, such"
    # Lighthouse's sets of highlights write null.
    for line in (unlabelled, {**unlabelled, "relevant_windows": None}):
        with refuses(AnnotationError, text):
            load_moment_jsonl(write("val.jsonl", line, ""))
    with refuses(FileError, "none.jsonl: No such file"):
        load_moment_jsonl(tmp_path / "none.jsonl")


def test_the_official_file(data_root):
    found = load_moment_jsonl(data_root / "qvhighlights" / "highlight_val_release.jsonl")
    assert (len(found), len(found.video_ids)) == (1_550, 1_519)
    assert max(len(item.moments) for item in found) > 5
    assert found.report.dropped == {}
