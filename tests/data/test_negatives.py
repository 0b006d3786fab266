"""Queries with no answer: in files, in batches, and drawn for training."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from helpers.assertions import refuses
from helpers.datasets import query_line, write_lines
from helpers.training import make_dataset

from tmapdiff.data import (
    Annotation,
    AnnotationSet,
    MomentDataset,
    Prediction,
    add_negatives,
    collate_moments,
    keep_consensus,
    load_moment_jsonl,
    read_submission,
    write_submission,
)
from tmapdiff.data.annotations import source_of
from tmapdiff.data.dataset import draw_window
from tmapdiff.errors import ArgumentError
from tmapdiff.inspection import inspect

VIDEOS = ["a_0.0_9.0", "a_9.0_18.0", "b_0.0_9.0", "c_0.0_9.0", "d"]
SENTENCES = ["A dog runs.", "A cat sleeps.", "a dog  runs.", "A bird sings.", "A cow eats."]
QUERIES = AnnotationSet(
    Annotation(n, VIDEOS[n], SENTENCES[n], 9.0 + n, ((1.0, 4.0),), ((2.0,),) * 4) for n in range(5)
)


def test_an_empty_list_of_windows_is_a_query_without_a_moment(tmp_path):
    dropped = query_line(2, windows=[[10, 12]])  # which is a fault of the file
    path = write_lines(tmp_path / "q.jsonl", [query_line(1, windows=[]), dropped])
    found = load_moment_jsonl(path)
    assert [(item.qid, item.moments) for item in found] == [(1, ())]
    assert "2 lines, 1 kept; 1 of them without a moment; 1 moments dropped" in str(found.report)
    assert keep_consensus(found)[0].moments == ()
    facts = inspect(path).facts["q.jsonl"]
    assert (facts["queries without a moment"], facts["length of moments"]) == (1, "none")
    answers = [Prediction(1, "a dog", "v", ())]
    write_submission(answers, tmp_path / "p.jsonl")
    assert list(read_submission(tmp_path / "p.jsonl")) == answers


def test_each_sentence_is_asked_of_a_video_that_it_does_not_describe():
    found = add_negatives(QUERIES)
    assert found[:5].annotations == QUERIES.annotations
    durations = {item.video_id: item.duration for item in QUERIES}
    drawn = Counter()
    for seed in range(100):
        for item, other in zip(QUERIES, add_negatives(QUERIES, seed)[5:], strict=True):
            assert (other.qid, other.query) == (f"{item.qid}-absent", item.query)
            assert (other.moments, other.saliency) == ((), None)
            assert other.duration == durations[other.video_id]
            drawn[item.qid, other.video_id] += 1
    # Neither their own source nor, of the dog, that of the other dog.
    expected = [VIDEOS[3:], VIDEOS[2:], VIDEOS[3:], [*VIDEOS[:3], "d"], VIDEOS[:4]]
    for qid, videos in enumerate(expected):
        counts = {video: n for (own, video), n in drawn.items() if own == qid}
        assert counts.keys() == set(videos)
        assert min(counts.values()) > 100 / len(videos) / 2
    assert add_negatives(QUERIES, 3).annotations == add_negatives(QUERIES, 3).annotations
    assert len(add_negatives(AnnotationSet([*QUERIES, replace(found[5], qid="x")]))) == 11


def test_a_sentence_of_all_videos_has_no_negative():
    again = replace(QUERIES[0], qid=9, video_id="c_9_12")
    common = AnnotationSet([*QUERIES[:1], *QUERIES[2:4], again])
    assert [item.qid for item in add_negatives(common)[4:]] == ["3-absent"]
    with refuses(ArgumentError, "negatives: expected a sentence with a moment, and another video"):
        add_negatives(common[:2])
    with refuses(ArgumentError, "share in [0, 0.9], got 1.0."):
        make_dataset(2).with_negatives(1.0)


def test_a_batch_of_queries_without_a_moment_has_none():
    dataset = make_dataset(3)
    absent = AnnotationSet(replace(item, moments=()) for item in dataset.annotations)
    vocabulary = dataset.vocabulary
    alone = MomentDataset(absent, dataset.store, vocabulary, num_clips=8)
    batch = collate_moments([alone[0], alone[1]])
    assert (batch.moments.shape, batch.num_moments.tolist()) == ((2, 0, 2), [0, 0])
    batch = collate_moments([alone[0], dataset[1]])
    assert (batch.moments.shape, batch.num_moments.tolist()) == ((2, 1, 2), [0, 1])


def test_any_window_of_a_video_is_drawn_where_there_is_no_moment():
    item = Annotation(0, "v", "a dog", 10.0, ())
    torch.manual_seed(0)
    found = Counter()
    for _ in range(300):
        first, part = draw_window(item, 1.0, 4, 10)
        assert (part.moments, part.duration) == ((), 4.0)
        found[first] += 1
    assert found.keys() == set(range(7))


def test_a_share_of_the_sentences_is_drawn_anew_at_each_access():
    plain = make_dataset(6)
    dataset = plain.with_negatives(0.4)
    assert (dataset.negatives, plain.negatives) == (0.4, 0.0)

    def draw(seed: int) -> list[str]:
        torch.manual_seed(seed)
        drawn = []
        for index, own in enumerate(plain.annotations):
            sample = dataset[index]
            item = sample.annotation
            assert (item.qid, item.query) == (own.qid, own.query)
            other = item.video_id != own.video_id
            assert other == (source_of(item.video_id) != source_of(own.video_id))
            assert item.moments == (() if other else own.moments)
            if other:
                place = [one.video_id for one in plain.annotations].index(item.video_id)
                assert torch.equal(sample.features, plain[place].features)
            drawn.append(item.video_id)
        return drawn

    several = [draw(seed) for seed in range(20)]
    assert several[0] == draw(0)
    assert several[0] != several[1]
    own = [item.video_id for item in plain.annotations]
    changed = sum(a != b for one in several for a, b in zip(one, own, strict=True))
    assert changed / (20 * len(own)) == pytest.approx(0.4, abs=0.08)
    assert [one.annotation for one in map(plain.__getitem__, range(4))] == [*plain.annotations[:4]]
