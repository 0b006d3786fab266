import pytest
from helpers.assertions import kinds
from helpers.datasets import query_line, write_lines

from tmapdiff.inspection import inspect


def line(qid, query="a dog runs", vid="one", duration=30.0, windows=((1, 5),)):
    return query_line(qid, vid, windows, query, duration)


def write(path, *lines):
    return write_lines(path, lines)


def test_facts(tmp_path):
    path = write(
        tmp_path / "train.jsonl",
        line(1),
        line(2, "two cats", "two", 10.0, [(0, 3), (4, 9)]),
        line(3, "a dog sleeps all day", "two", 10.0, [(2, 10)]),
    )
    found = inspect(path)
    assert (found.kind, found.findings) == ("annotations", ())
    assert found.facts == {
        "train.jsonl": {
            "format": "moment-jsonl",
            "split": "train",
            "queries": 3,
            "videos": 2,
            "moments": 4,
            "moments per query": "1 to 2, median 1",
            "duration of videos": "10 to 30 s, median 20 s",
            "length of moments": "3 to 8 s, median 4.5 s",
            "words per query": "2 to 5, median 3",
            "vocabulary": 8,
        }
    }


@pytest.mark.parametrize(
    ("planted", "kind", "items"),
    [
        ([line(9, windows=[(20, 31)])], "moments past the end", ()),
        ([line(9, windows=[(5, 5)])], "moments left out", ("2",)),
        ([line(9, windows=[(40, 50), (1, 2)])], "moments left out", ("2",)),
        ([line(9, query="A dog  runs")], "duplicates", ("9",)),
        ([line(9, query="...")], "queries without a word", ("9",)),
        ([line(9, query="other", duration=29.0)], "durations that differ", ("one",)),
        ([line(9), {"qid": 10}], "damaged annotations", ("train.jsonl",)),
    ],
)
def test_each_planted_fault_is_found_and_nothing_else(tmp_path, planted, kind, items):
    write(tmp_path / "train.jsonl", line(1), *planted)
    write(tmp_path / "test.jsonl", line(1, vid="another"))
    assert kinds(inspect(tmp_path)) == {kind: items}


def test_the_same_words_about_another_moment_are_no_duplicate(tmp_path):
    path = write(tmp_path / "a.jsonl", line(1), line(2, windows=[(9, 12)]), line(3, vid="two"))
    assert inspect(path).findings == ()


def test_a_file_without_any_query_left_is_reported(tmp_path):
    path = write(tmp_path / "{a} {0}.jsonl", line(1, windows=[(5, 5)]))
    assert set(kinds(inspect(path))) == {"moments left out", "no annotations"}


def test_videos_of_training_in_the_test_are_found(tmp_path):
    write(tmp_path / "train.jsonl", line(1), line(2, vid="two"))
    write(tmp_path / "test.jsonl", line(1, vid="two"), line(2, vid="three"))
    assert kinds(inspect(tmp_path)) == {"shared videos": ("two",)}
    found = inspect(tmp_path / "train.jsonl", tmp_path / "test.jsonl")
    assert kinds(found) == {"shared videos": ("two",)}
    assert str(found.findings[0]) == "shared videos: 1 videos in common: two"


def test_a_line_names_the_first_few_and_the_finding_has_all(tmp_path):
    path = write(tmp_path / "a.jsonl", *(line(n) for n in range(1234)))
    (finding,) = inspect(path).findings
    assert finding.text.endswith("moments), qids: 1, 2, 3, 4, 5, ...")
    assert "1,233 queries repeat" in finding.text
    assert finding.items == tuple(map(str, range(1, 1234)))
