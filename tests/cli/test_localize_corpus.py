import pytest
from helpers.corpora import make_corpus, write

pq = pytest.importorskip("pyarrow.parquet", reason="pyarrow comes with the extra ray")


@pytest.fixture
def corpus(tmp_path):
    return make_corpus(tmp_path, 3)


@pytest.fixture
def localize(run, corpus):
    places = [corpus / name for name in ("pipeline", "videos.parquet", "queries.parquet")]
    options = ["--features", corpus / "features", "--out", corpus / "out", "--workers", 0]
    return lambda *more: run("localize-corpus", *places, *options, *more)


def test_a_corpus_is_localized(localize, corpus):
    found = localize("--steps", 1, "--top", 2, "--videos-per-file", 2)
    assert found.code == 0
    assert found.out.startswith("9 queries in 3 videos, ")
    assert found.err.splitlines() == ["2 of 3 videos", "3 of 3 videos"]
    rows = pq.read_table(corpus / "out").to_pylist()
    assert len(rows) == 9
    assert {len(row["moments"]) for row in rows} == {2}


def test_programs_get_a_document_and_failures_code_1(localize, corpus):
    (corpus / "features" / "video01.npy").unlink()
    found = localize("--json")
    assert found.code == 1
    document = found.document
    assert (document["videos"], document["pairs"], document["done_before"]) == (2, 6, 0)
    assert [one["video_id"] for one in document["failed"]] == ["video01"]
    assert "video01: " in found.err


def test_a_device_that_there_is_not_is_refused(localize, corpus):
    found = localize("--device", "nowhere")
    assert found.code == 1
    assert "--device: expected a device of this machine, got 'nowhere'" in found.err
    assert not (corpus / "out").exists()


def test_errors_are_one_line(localize, corpus):
    write(corpus / "videos.parquet", video_id=["a"])
    found = localize()
    expected = f"error: {corpus / 'videos.parquet'} row 1: expected the field 'duration', got"
    assert found.code == 1
    assert found.err.startswith(expected)
    assert found.err.count("\n") == 1
