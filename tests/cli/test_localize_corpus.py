import json

import pytest
from helpers.corpora import make_corpus, write

from tmapdiff.cli import main

pq = pytest.importorskip("pyarrow.parquet", reason="pyarrow comes with the extra ray")


@pytest.fixture
def corpus(tmp_path):
    return make_corpus(tmp_path, 3)


def arguments(corpus, *more):
    names = ("pipeline", "videos.parquet", "queries.parquet")
    tables = [str(corpus / name) for name in names]
    options = ["--features", corpus / "features", "--out", corpus / "out", "--workers", "0"]
    return ["localize-corpus", *tables, *map(str, options), *more]


def test_a_corpus_is_localized(corpus, capsys):
    assert main(arguments(corpus, "--steps", "1", "--top", "2", "--videos-per-file", "2")) == 0
    shown = capsys.readouterr()
    assert shown.out.startswith("9 queries in 3 videos, ")
    assert shown.err.splitlines() == ["2 of 3 videos", "3 of 3 videos"]
    rows = pq.read_table(corpus / "out").to_pylist()
    assert len(rows) == 9
    assert {len(row["moments"]) for row in rows} == {2}


def test_programs_get_a_document_and_failures_code_1(corpus, capsys):
    (corpus / "features" / "video01.npy").unlink()
    assert main(arguments(corpus, "--json")) == 1
    shown = capsys.readouterr()
    document = json.loads(shown.out)
    assert (document["videos"], document["pairs"], document["done_before"]) == (2, 6, 0)
    assert [one["video_id"] for one in document["failed"]] == ["video01"]
    assert "video01: " in shown.err


def test_a_device_that_there_is_not_is_refused(corpus, capsys):
    assert main(arguments(corpus, "--device", "nowhere")) == 1
    assert "--device: expected a device of this machine, got 'nowhere'" in capsys.readouterr().err
    assert not (corpus / "out").exists()


def test_errors_are_one_line(corpus, capsys):
    write(corpus / "videos.parquet", video_id=["a"])
    assert main(arguments(corpus)) == 1
    shown = capsys.readouterr()
    expected = f"error: {corpus / 'videos.parquet'} row 1: expected the field 'duration', got"
    assert shown.err.startswith(expected)
    assert shown.err.count("\n") == 1
