import json

import pytest
from helpers.assertions import refuses

from tmapdiff.data import Prediction, read_submission, write_submission
from tmapdiff.errors import AnnotationError, FileError

# As moment_detr and lighthouse write it.
LINE = {
    "qid": 2579,
    "query": "A girl cooks.",
    "vid": "NUs_0.0_150.0",
    "pred_relevant_windows": [[0.0, 70.0, 0.9986], [78, 146, 0.4138], [-1.5, -1.5, 0.0]],
    "pred_saliency_scores": [-0.25, 0.5],
}


PREDICTIONS = (
    Prediction(12404, "A b.", "3MSZA", ((24.3, 30.4, 0.75), (0.0, 2.0, -4.0))),
    Prediction("s17-d69_0", "Größe \u201cx\u201d", "s17-d69", ((1.25, 3.5, 1e-7),)),
    Prediction(8, "not there", "v", ()),
)


def test_every_field_has_the_form_that_moment_detr_reads(tmp_path):
    path = tmp_path / "predictions.jsonl"
    write_submission(PREDICTIONS, path)
    assert read_submission(path) == PREDICTIONS
    text = path.read_text(encoding="ascii")
    # Its reader parses each line: a blank one would be no JSON.
    first, *_ = (json.loads(line) for line in text.removesuffix("\n").split("\n"))
    assert set(first) == {"qid", "query", "vid", "pred_relevant_windows"}
    assert type(first["qid"]) is int  # compared with the annotation's
    assert (first["query"], first["vid"]) == ("A b.", "3MSZA")
    # [start (seconds), end (seconds), score], best first.
    assert first["pred_relevant_windows"] == [[24.3, 30.4, 0.75], [0.0, 2.0, -4.0]]
    assert all(type(number) is float for one in first["pred_relevant_windows"] for number in one)


def test_reads_the_files_of_others(write):
    found = read_submission(write("hl_val_submission.jsonl", LINE, "", {**LINE, "qid": "b"}))
    assert [one.qid for one in found] == [2579, "b"]
    assert (found[0].query, found[0].video_id) == ("A girl cooks.", "NUs_0.0_150.0")
    assert found[0].windows == ((0.0, 70.0, 0.9986), (78.0, 146.0, 0.4138), (-1.5, -1.5, 0.0))


def test_small_scores_stay_in_order():
    # What later answers add to expected hits may be far below a ten-thousandth.
    windows = ((1.23456, 2.0, 4.25e-6), (3.0, 4.0, 1.5e-6))
    written = Prediction(0, "query", "video", windows).as_submission()["pred_relevant_windows"]
    assert written == [[1.2345, 2.0, 4.25e-6], [3.0, 4.0, 1.5e-6]]


def changed(**fields):
    return {**LINE, "qid": 1, **fields}


WINDOW = "line 2: expected [start, end, score] in pred_relevant_windows to be 3 numbers, got "


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("{", "hl_val_submission.jsonl line 2: expected JSON, got "),
        ("3", "line 2: expected an object with the field 'qid', got 3."),
        (changed(qid=True), "line 2: expected qid to be an integer or text, got True."),
        (changed(qid=2579), "line 2: expected unique qids, got 2579 twice."),
        (changed(vid=3), "line 2: expected a video id as text, got 3."),
        (changed(vid="../x"), "line 2: expected a video id without '/'"),
        (changed(query=""), "line 2: expected a sentence, got ''."),
        (changed(pred_relevant_windows="x"), "pred_relevant_windows to be a list, got 'x'."),
        (changed(pred_relevant_windows=[[1, 2]]), WINDOW + "[1, 2]."),
        (changed(pred_relevant_windows=["123"]), WINDOW + "'123'."),
        (changed(pred_relevant_windows=[[3, 2, 0.5]]), "with start <= end, got [3, 2, 0.5]."),
        (changed(pred_relevant_windows=[[1, 2, None]]), WINDOW + "[1, 2, None]."),
        (changed(pred_relevant_windows=[[1, 2, float("nan")]]), WINDOW + "[1, 2, nan]."),
        ('{"qid": 1, "vid": "v"}', "line 2: expected the field 'query', got the fields qid, vid."),
    ],
)
def test_a_malformed_line_is_named(write, line, text):
    with refuses(AnnotationError, text):
        read_submission(write("hl_val_submission.jsonl", LINE, line))


def test_places_that_cannot_be_used(tmp_path):
    (tmp_path / "file").write_text("")
    with refuses(FileError, "cannot write ", "predictions.jsonl: Not a directory."):
        write_submission((), tmp_path / "file" / "predictions.jsonl")
    with refuses(FileError, "cannot read ", "none.jsonl: No such file or directory."):
        read_submission(tmp_path / "none.jsonl")
