"""Queries with no answer, made of those that have one: sentences paired with other videos."""

from collections import defaultdict
from dataclasses import replace

import torch

from tmapdiff._core.checks import check_int, message
from tmapdiff.data.annotations import Annotation, AnnotationSet, source_of
from tmapdiff.errors import ArgumentError

MOST_NEGATIVES = 0.9  # of the sentences: something is to be learned of moments, too


class OtherVideos:
    """Draws videos that a sentence is not annotated in.

    Nor is the same sentence, whatever its case and blanks, in another piece of that video.

    Args:
        annotations: The queries, and the videos to draw from.

    Raises:
        ArgumentError: If each sentence is annotated in all videos.
    """

    def __init__(self, annotations: AnnotationSet) -> None:
        self._durations = {item.video_id: item.duration for item in annotations}
        self._videos = annotations.video_ids
        self._sources: dict[str, set[str]] = defaultdict(set)
        for item in annotations:
            self._sources[_normal(item.query)].add(source_of(item.video_id))
        self._everywhere = len(set(map(source_of, self._videos)))
        if not any(map(self.can_pair, annotations)):
            expected = "a sentence with a moment, and another video to pair it with as a negative"
            got = f"{len(annotations)} queries of {self._everywhere} videos"
            raise ArgumentError(message("negatives", expected, got))

    def can_pair(self, item: Annotation) -> bool:
        """Tell whether a query has a moment, and there is a video to draw."""
        return bool(item.moments) and len(self._sources[_normal(item.query)]) < self._everywhere

    def draw(self, item: Annotation, generator: torch.Generator | None = None) -> Annotation:
        """Pair a sentence that can be with one of them, each as likely; it has no moment there."""
        own = self._sources[_normal(item.query)]
        while True:
            index = int(torch.randint(len(self._videos), (), generator=generator))
            video = self._videos[index]
            if source_of(video) not in own:
                duration = self._durations[video]
                return replace(item, video_id=video, duration=duration, moments=(), saliency=None)


def add_negatives(annotations: AnnotationSet, seed: int = 0) -> AnnotationSet:
    """Ask each sentence of another video, too, where it has no answer: to judge what tells that.

    Another video is one of another source (`AnnotationSet.split_videos` says what that is), of
    which the same sentence is not annotated. That nothing in it fits the sentence nobody checked.

    Args:
        annotations: Queries; of those that have no moment already, or whose sentence is annotated
            in all videos, there is no second.
        seed: Another seed draws other videos.

    Returns:
        The queries, and after them those with no answer, whose `qid` ends with `-absent`.

    Raises:
        ArgumentError: If `seed` is not an integer >= 0, or there is no query to pair.
        AnnotationError: If there is a `qid` that ends so already.
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
