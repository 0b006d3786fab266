"""Synthetic videos of scripted activities, learned within minutes and without any files."""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from typing_extensions import override

from tmapdiff._core.checks import check_choice, check_int
from tmapdiff.data.annotations import Annotation, AnnotationReport, AnnotationSet
from tmapdiff.data.charades import CharadesVideo
from tmapdiff.data.didemo import SEGMENT_SECONDS
from tmapdiff.data.sampling import generator_for

Moment = tuple[float, float]

# Wordings of each activity, in simple present and progressive. Verbs and objects recur, so that
# neither identifies the activity alone.
_ACTIVITIES = (
    (("opens a door", "opening a door"), ("pulls the door open", "pulling the door open")),
    (("closes a door", "closing a door"), ("shuts the door", "shutting the door")),
    (("opens a book", "opening a book"), ("opens up the book", "opening up the book")),
    (("closes a book", "closing a book"), ("shuts the book", "shutting the book")),
    (("opens a laptop", "opening a laptop"), ("opens the computer", "opening the computer")),
    (("closes a laptop", "closing a laptop"), ("shuts the computer", "shutting the computer")),
    (("pours water", "pouring water"), ("fills a cup with water", "filling a cup with water")),
    (("drinks water", "drinking water"), ("takes a sip of water", "taking a sip of water")),
    (("washes a cup", "washing a cup"), ("cleans the cup", "cleaning the cup")),
    (("washes a window", "washing a window"), ("cleans the window", "cleaning the window")),
    (("throws a pillow", "throwing a pillow"), ("tosses the pillow", "tossing the pillow")),
    (("throws a towel", "throwing a towel"), ("tosses the towel", "tossing the towel")),
    (("folds a towel", "folding a towel"), ("folds up the towel", "folding up the towel")),
    (("puts on shoes", "putting on shoes"), ("puts the shoes on", "putting the shoes on")),
    (("takes off shoes", "taking off shoes"), ("takes the shoes off", "taking the shoes off")),
    (("eats a sandwich", "eating a sandwich"), ("has a sandwich", "having a sandwich")),
)
_DOES = ("a person {}.", "the person {}.", "someone {}.", "person {}.")
_IS_DOING = ("a person is {}.", "the person is {}.", "someone is {}.", "the person starts {}.")


class SyntheticActivities:
    """Synthetic videos of scripted activities, with sentences.

    A video lasts 20 to 40 s and shows 3 to 6 of 16 activities, each at most once, for 2 to 15 s,
    possibly overlapping. Each has one sentence, in one of several wordings.
    `ActionTimelineFeatures` makes features of `videos`, as for Charades.

    They show whether a model learns: the best constant answer has Rank1@0.5 below 20 %. Results on
    them say nothing about real videos.

    Args:
        num_videos: Number of videos. Defaults to 135 (about 600 queries) for training and 45 (about
            200) for testing.
        seed: Seed of the videos.
        split: Split. Train and test share activities, but no video.

    Raises:
        ArgumentError: If `num_videos` is not an integer >= 1, or `seed` not an integer >= 0.
        ConfigError: If `split` is unknown.

    Example:
        >>> data = SyntheticActivities(num_videos=2, split="test")
        >>> data.annotations.video_ids
        ('synthetic-test-0-0', 'synthetic-test-0-1')
    """

    num_classes = len(_ACTIVITIES)
    _source = "synthetic activities"

    def __init__(
        self,
        num_videos: int | None = None,
        *,
        seed: int = 0,
        split: Literal["train", "test"] = "train",
    ) -> None:
        self.split = split
        who = "SyntheticActivities"
        self.seed, numbers = check_made_up(who, num_videos, seed, split, default=135)
        self.videos: dict[str, CharadesVideo] = {}
        items: list[Annotation] = []
        for number in numbers:
            video_id = f"synthetic-{split}-{self.seed}-{number}"
            random = generator_for(video_id)
            video = self.videos[video_id] = self._make_video(random, number)
            for activity, start, end in video.actions:
                query = make_sentence(random, _ACTIVITIES[activity], (_DOES, _IS_DOING))
                moments = tuple(self._moments(len(items), video_id, start, end))
                items.append(Annotation(len(items), video_id, query, video.duration, moments))
        self.annotations = made_up(f"{self._source} ({split}, seed {self.seed})", items)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.split}, seed {self.seed}: {self.annotations!r})"

    def _make_video(self, random: np.random.Generator, number: int) -> CharadesVideo:
        duration = round(float(random.uniform(20, 40)), 2)
        activities = random.permutation(len(_ACTIVITIES))[: random.integers(3, 7)]
        actions = []
        for activity in activities.tolist():
            # Uniform on a log scale, as IoU depends on ratios of lengths: no length fits most.
            length = float(np.exp(random.uniform(np.log(2), np.log(15))))
            # More often near the ends of the video, as long activities cover its middle anyway.
            start = round((duration - length) * float(random.beta(0.7, 0.7)), 2)
            actions.append((activity, start, min(round(start + length, 2), duration)))
        return CharadesVideo(duration, tuple(sorted(actions, key=lambda action: action[1])))

    def _moments(self, qid: int, video_id: str, start: float, end: float) -> list[Moment]:
        """Return the moments of a query about an action."""
        return [(start, end)]


class SyntheticDiDeMo(SyntheticActivities):
    """Synthetic videos in the format of DiDeMo: segments of 5 s, marked by several annotators.

    The videos and sentences of `SyntheticActivities` are stretched to 30 s, or every sixth to 25 s.
    Four annotators (seven for every tenth query) mark the segments that an activity touches. In one
    of four cases, they err by a segment at one end.

    `num_videos`, `seed`, `split` and errors are as for `SyntheticActivities`.

    Example:
        >>> data = SyntheticDiDeMo(num_videos=2, split="test")
        >>> len(data.annotations[0].moments)
        7
    """

    _source = "synthetic activities in DiDeMo's form"

    @override
    def _make_video(self, random: np.random.Generator, number: int) -> CharadesVideo:
        video = super()._make_video(random, number)
        duration = (5 if number % 6 == 5 else 6) * SEGMENT_SECONDS
        stretch = duration / video.duration
        return CharadesVideo(
            duration, tuple((a, s * stretch, e * stretch) for a, s, e in video.actions)
        )

    @override
    def _moments(self, qid: int, video_id: str, start: float, end: float) -> list[Moment]:
        random = generator_for(f"didemo-{video_id}-{qid}")
        segments = round(self.videos[video_id].duration / SEGMENT_SECONDS)
        return [_mark(random, start, end, segments) for _ in range(7 if qid % 10 == 0 else 4)]


def _mark(random: np.random.Generator, start: float, end: float, segments: int) -> Moment:
    """Return the start and end of the segments that an annotator marks, in seconds."""
    first = min(int(start // SEGMENT_SECONDS), segments - 1)
    last = max(first, min(math.ceil(end / SEGMENT_SECONDS), segments) - 1)
    if random.random() < 0.25:
        if random.integers(2):
            first = int(np.clip(first + random.choice((-1, 1)), 0, last))
        else:
            last = int(np.clip(last + random.choice((-1, 1)), first, segments - 1))
    return first * SEGMENT_SECONDS, (last + 1) * SEGMENT_SECONDS


def check_made_up(
    who: str, num_videos: int | None, seed: int, split: str, *, default: int
) -> tuple[int, range]:
    """Return the checked seed, and the numbers of the videos to make."""
    check_choice(who, "split", split, ("train", "test"))
    if num_videos is None:
        num_videos = default if split == "train" else 45
    num_videos = check_int(who, "num_videos", num_videos, at_least=1)
    return check_int(who, "seed", seed, at_least=0), range(num_videos)


def make_sentence(
    random: np.random.Generator,
    wordings: tuple[tuple[str, str], ...],
    templates: tuple[tuple[str, ...], tuple[str, ...]],
    *names: str,
) -> str:
    """Return a random wording in simple present or progressive, filled into a template."""
    does, is_doing = wordings[random.integers(len(wordings))]
    words, sentences = (does, templates[0]) if random.integers(2) else (is_doing, templates[1])
    return sentences[random.integers(len(sentences))].format(*names, words)


def made_up(source: str, items: Sequence[Annotation]) -> AnnotationSet:
    """Return a set of generated annotations."""
    return AnnotationSet(items, AnnotationReport(source, lines=len(items), kept=len(items)))
