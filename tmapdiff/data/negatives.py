"""Queries without an answer: sentences paired with other videos."""

from collections import defaultdict
from dataclasses import replace

import torch

from tmapdiff._core.checks import check_int, message
from tmapdiff.data.annotations import Annotation, AnnotationSet, source_of
from tmapdiff.errors import ArgumentError

MOST_NEGATIVES = 0.9  # largest share of sentences, so that moments are learned too


class OtherVideos:
    """Draws videos of `annotations` in which a sentence is not annotated, nor in their sources.

    Sentences that differ only in case and whitespace count as the same. If no query can be paired,
    it raises ArgumentError.
    """

    def __init__(self, annotations: AnnotationSet) -> None:
        self._durations = {item.video_id: item.duration for item in annotations}
        self._videos = annotations.video_ids
        self._sources: dict[str, set[str]] = defaultdict(set)
        for item in annotations:
            self._sources[_normal(item.query)].add(source_of(item.video_id))
        self._everywhere = len(set(map(source_of, self._videos)))
        if not any(map(self.can_pair, annotations)):
            expected = "a sentence with a moment, and another video to pair it with"
            got = f"{len(annotations)} queries of {self._everywhere} videos"
            raise ArgumentError(message("negatives", expected, got))

    def can_pair(self, item: Annotation) -> bool:
        """Return whether a query has a moment, and there is a video to draw."""
        return bool(item.moments) and len(self._sources[_normal(item.query)]) < self._everywhere

    def draw(self, item: Annotation, generator: torch.Generator | None = None) -> Annotation:
        """Pair a query for which `can_pair` is True with a random video, without a moment."""
        own = self._sources[_normal(item.query)]
        while True:
            index = int(torch.randint(len(self._videos), (), generator=generator))
            video = self._videos[index]
            if source_of(video) not in own:
                duration = self._durations[video]
                return replace(item, video_id=video, duration=duration, moments=(), saliency=None)


def add_negatives(annotations: AnnotationSet, seed: int = 0) -> AnnotationSet:
    """Add each sentence again with another video and no moment, to evaluate predicted absence.

    The other video comes from another source video (see `AnnotationSet.split_videos`) in which the
    sentence is not annotated. Nobody checked that it does not fit the sentence.

    Args:
        annotations: Queries. Those without a moment, or with a sentence annotated in all videos,
            are not added again.
        seed: Seed of the choice of videos.

    Returns:
        The queries, followed by those without an answer, whose `qid` ends with `-absent`.

    Raises:
        ArgumentError: If `seed` is not an integer >= 0, or there is no query to pair.
        AnnotationError: If an added `qid` exists already.
    """
    seed = check_int("add_negatives", "seed", seed, at_least=0)
    others, generator = OtherVideos(annotations), torch.Generator().manual_seed(seed)
    added = (
        replace(others.draw(item, generator), qid=f"{item.qid}-absent")
        for item in annotations
        if others.can_pair(item)
    )
    return AnnotationSet((*annotations, *added), annotations.report)


def _normal(sentence: str) -> str:
    return " ".join(sentence.lower().split())
