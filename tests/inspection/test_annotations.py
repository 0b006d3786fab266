from functools import partial

import pytest
from helpers.assertions import kinds
from helpers.datasets import query_line, write_lines

from tmapdiff.inspection import inspect

line = partial(query_line, video="one", windows=((1, 5),), query="a dog runs", duration=30.0)


def test_facts(tmp_path):
    two = partial(line, video="two", duration=10.0)
    lines = [
        line(1),
        two(2, query="two cats", windows=[(0, 3), (4, 9)]),
        two(3, query="a dog sleeps all day", windows=[(2, 10)]),
    ]
    found = inspect(write_lines(tmp_path / "train.jsonl", lines))
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
    write_lines(tmp_path / "train.jsonl", [line(1), *planted])
    write_lines(tmp_path / "test.jsonl", [line(1, video="another")])
    assert kinds(inspect(tmp_path)) == {kind: items}


def test_the_same_words_about_another_moment_are_no_duplicate(tmp_path):
    lines = [line(1), line(2, windows=[(9, 12)]), line(3, video="two")]
    assert inspect(write_lines(tmp_path / "a.jsonl", lines)).findings == ()


def test_a_file_without_any_query_left_is_reported(tmp_path):
    path = write_lines(tmp_path / "{a} {0}.jsonl", [line(1, windows=[(5, 5)])])
    assert set(kinds(inspect(path))) == {"moments left out", "no annotations"}


def test_videos_of_training_in_the_test_are_found(tmp_path):
    write_lines(tmp_path / "train.jsonl", [line(1), line(2, video="two")])
    write_lines(tmp_path / "test.jsonl", [line(1, video="two"), line(2, video="three")])
    assert kinds(inspect(tmp_path)) == {"shared videos": ("two",)}
    found = inspect(tmp_path / "train.jsonl", tmp_path / "test.jsonl")
    assert kinds(found) == {"shared videos": ("two",)}
    assert str(found.findings[0]) == "shared videos: 1 videos in common: two"


def test_a_line_names_the_first_few_and_the_finding_has_all(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", map(line, range(1234)))
    (finding,) = inspect(path).findings
    assert finding.text.endswith("moments), qids: 1, 2, 3, 4, 5, ...")
    assert "1,233 queries repeat" in finding.text
    assert finding.items == tuple(map(str, range(1, 1234)))
