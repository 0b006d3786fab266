"""Annotations: sentences and the moments of videos that they describe."""

import hashlib
import re
from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral
from typing import Any, overload

from tmapdiff._core.checks import check_int, check_range, message, short, shown
from tmapdiff._core.numbers import finite_number
from tmapdiff.data._spelling import SUFFIXES, find_spelling, some_ids
from tmapdiff.data._video_ids import check_video_id
from tmapdiff.errors import AnnotationError, ArgumentError

_LISTED = 5  # lines or videos listed in a report; the rest are counted
# Start and end of a piece of a video, possibly with the suffix of a file.
_PIECE = re.compile(rf"_\d+(\.\d+)?_\d+(\.\d+)?({'|'.join(map(re.escape, SUFFIXES))})?$", re.I)


@dataclass(frozen=True)
class Annotation:
    """A sentence and the moments of a video that it describes.

    Args:
        qid: Id of the query, unique in its set.
        video_id: Id of the video, as in the feature store.
        query: The sentence.
        duration: Duration of the video in seconds.
        moments: Start and end in seconds, inside the video. Empty if the sentence is known to
            describe nothing in this video.
        saliency: Ratings of how well each clip of 2 s fits the query, from 0 to 4, one per
            annotator, as in QVHighlights.

    Raises:
        AnnotationError: If the video id could leave a folder of features, the query is blank, the
            duration is not positive, a moment is empty or outside the video, or clips differ in the
            number of ratings.
    """

    qid: int | str
    video_id: str
    query: str
    duration: float
    moments: tuple[tuple[float, float], ...]
    saliency: tuple[tuple[float, ...], ...] | None = None

    def __post_init__(self) -> None:
        who = f"annotation {shown(self.qid)}"
        check_video_id(who, self.video_id)
        if not isinstance(self.query, str) or not self.query.strip():
            raise AnnotationError(message(who, "a sentence as query", shown(self.query)))
        if isinstance(self.qid, bool) or not isinstance(self.qid, Integral | str):
            raise AnnotationError(message(who, "an integer or text as qid", shown(self.qid)))
        check_duration(who, self.duration)
        if not isinstance(self.moments, list | tuple):
            expected = "a list of moments, (start, end) in seconds"
            raise AnnotationError(message(who, expected, shown(self.moments)))
        for start, end in (check_numbers(who, "(start, end)", one, 2) for one in self.moments):
            # Written so that NaN fails too.
            if not 0 <= start < end <= self.duration:
                expected = f"moments with 0 <= start < end <= {self.duration:g} (the duration)"
                raise AnnotationError(message(who, expected, f"({start:g}, {end:g})"))
        if self.saliency is not None:
            if not isinstance(self.saliency, list | tuple):
                raise AnnotationError(message(who, "a list as saliency", shown(self.saliency)))
            annotators = None
            for ratings in self.saliency:
                annotators = len(check_numbers(who, "saliency of a clip", ratings, annotators))


@dataclass(frozen=True)
class AnnotationReport:
    """What was kept, changed and dropped while reading an annotation file.

    Slices and splits of a set carry the report of the whole file.

    Args:
        source: File or generator of the annotations.
        lines: Number of nonblank lines, or of records in a JSON file.
        kept: Number of annotations.
        cut_ends: Number of moments that were clipped to the end of their video.
        dropped: Lines (or records, from 1) of dropped moments, by reason.
        without_features: Number of annotations that `AnnotationSet.restrict_to` left out.
        missing_videos: Videos that the feature store lacks.
        cut_starts: Number of moments that were clipped to the start of their video.
        spelling: Spelling of video ids taken over from the feature store, such as "with '.avi'".
        other_videos: A few videos of the feature store, if it has none of the annotated ones.
        without_moment: Number of annotations without a moment.
    """

    source: str
    lines: int
    kept: int
    cut_ends: int = 0
    dropped: Mapping[str, tuple[int, ...]] = field(default_factory=dict, hash=False)
    without_features: int = 0
    missing_videos: tuple[str, ...] = ()
    cut_starts: int = 0
    spelling: str = ""
    other_videos: tuple[str, ...] = ()
    without_moment: int = 0

    def __str__(self) -> str:
        facts = [f"{self.source}: {self.lines:,} lines, {self.kept:,} kept"]
        if self.without_moment:
            facts.append(f"{self.without_moment:,} of them without a moment")
        if self.cut_starts:
            facts.append(f"{self.cut_starts:,} starts clipped to 0")
        if self.cut_ends:
            facts.append(f"{self.cut_ends:,} ends clipped to the video's end")
        for reason, lines in self.dropped.items():
            facts.append(f"{len(lines):,} moments dropped: {reason} (lines {listed(lines)})")
        if self.without_features:
            videos = f"{len(self.missing_videos):,} videos ({listed(self.missing_videos)})"
            facts.append(f"{self.without_features:,} queries left out: no features of {videos}")
        if self.spelling:
            facts.append(f"video ids spelled {self.spelling}, as in the features")
        if self.other_videos:
            others = ", ".join(map(shown, self.other_videos))
            facts.append(f"the features are of other videos, such as {others}")
        return "; ".join(facts)


@dataclass(frozen=True, init=False, repr=False)
class AnnotationSet(Sequence[Annotation]):
    """An immutable sequence of annotations with a report of how they were read.

    Args:
        annotations: The annotations, with unique `qid`s.
        report: The report. Defaults to one of annotations in memory.

    Raises:
        AnnotationError: If two annotations have the same `qid`.
    """

    annotations: tuple[Annotation, ...]
    report: AnnotationReport

    def __init__(
        self, annotations: Iterable[Annotation], report: AnnotationReport | None = None
    ) -> None:
        items = tuple(annotations)
        counts = Counter(item.qid for item in items)
        if twice := [qid for qid, count in counts.items() if count > 1]:
            got = f"{shown(twice[0])} twice"
            raise AnnotationError(message("AnnotationSet", "unique qids", got))
        object.__setattr__(self, "annotations", items)
        if report is None:
            report = AnnotationReport("annotations in memory", lines=len(items), kept=len(items))
        object.__setattr__(self, "report", report)

    def __repr__(self) -> str:
        return f"AnnotationSet({len(self):,} queries, {len(self.video_ids):,} videos)"

    def __len__(self) -> int:
        return len(self.annotations)

    @overload
    def __getitem__(self, index: int) -> Annotation: ...

    @overload
    def __getitem__(self, index: slice) -> "AnnotationSet": ...

    def __getitem__(self, index: int | slice) -> "Annotation | AnnotationSet":
        if isinstance(index, slice):
            return AnnotationSet(self.annotations[index], self.report)
        return self.annotations[index]

    @property
    def video_ids(self) -> tuple[str, ...]:
        """Ids of the videos, in order of their first annotation."""
        return tuple(dict.fromkeys(item.video_id for item in self.annotations))

    def limit(self, n: int) -> "AnnotationSet":
        """Return the first `n` annotations, or all if there are fewer.

        Raises:
            ArgumentError: If `n` is not an integer >= 0.
        """
        return self[: check_int("AnnotationSet.limit", "n", n, at_least=0)]

    def restrict_to(self, store: Container[str]) -> "AnnotationSet":
        """Leave out videos that a feature store lacks; the report lists them.

        If the store has none of the ids, but has some with or without a suffix such as `.avi`
        (TACoS) or the prefix `v_` (ActivityNet), the annotations take over that spelling, and the
        report names it.

        Args:
            store: A feature store, or any container of video ids.
        """
        spelling, names = find_spelling(self.video_ids, store)
        missing = tuple(video for video in self.video_ids if video not in names)
        kept = tuple(item for item in self if item.video_id in names)
        if spelling:
            kept = tuple(replace(item, video_id=names[item.video_id]) for item in kept)
        report = replace(
            self.report,
            without_features=self.report.without_features + len(self) - len(kept),
            missing_videos=self.report.missing_videos + missing,
            spelling=spelling or self.report.spelling,
            other_videos=some_ids(store) if missing and not kept else (),
        )
        return AnnotationSet(kept, report)

    def split_videos(self, fraction: float, seed: int = 0) -> "tuple[AnnotationSet, AnnotationSet]":
        """Hold out some of the videos, with all their annotations, for validation.

        The choice depends on `seed` and the video ids only, not on their order. Pieces of one
        source video stay together. Their ids end with their times, as in QVHighlights'
        `b9aeZfR0_Xc_60.0_210.0`.

        Args:
            fraction: Share of the source videos to hold out, but at least one, and not all.
            seed: Seed of the choice.

        Returns:
            The annotations that stay, and those held out.

        Raises:
            ArgumentError: If `fraction` is not inside (0, 1), `seed` is not an integer >= 0, or
                there are fewer than two source videos.
        """
        who = "AnnotationSet.split_videos"
        fraction = check_range(who, "fraction", fraction, 0, 1, open_low=True)
        seed = check_int(who, "seed", seed, at_least=0)
        videos = set(map(source_of, self.video_ids))
        if fraction == 1 or len(videos) < 2:
            expected = "fraction < 1 and at least two videos"
            hint = ""
            if len(self.video_ids) > len(videos):
                hint = "Ids that end with two times, as x_0.0_150.0, are pieces of one video."
            got = f"{fraction:g} and {len(videos)} videos"
            raise ArgumentError(message(who, expected, got, hint))
        ranked = sorted(videos, key=lambda id_: _digest(f"{seed}/{id_}"))
        held_out = frozenset(ranked[: min(max(round(fraction * len(videos)), 1), len(videos) - 1)])
        parts: tuple[list[Annotation], list[Annotation]] = [], []
        for item in self:
            parts[source_of(item.video_id) in held_out].append(item)
        return AnnotationSet(parts[0], self.report), AnnotationSet(parts[1], self.report)


def source_of(video_id: str) -> str:
    """Return the id of the source video: `video_id` without times of a piece at its end."""
    return _PIECE.sub("", video_id)


def check_duration(who: str, duration: object) -> None:
    """Raise AnnotationError unless `duration` is a positive number."""
    seconds = finite_number(duration)
    if seconds is None or seconds <= 0:
        raise AnnotationError(message(who, "a duration > 0 seconds", shown(duration)))


def check_numbers(who: str, name: str, value: Any, count: int | None = None) -> Sequence[Any]:
    """Return `value`, or raise AnnotationError unless it is a list of `count` finite numbers."""
    listed = isinstance(value, list | tuple) and count in (None, len(value))
    if not listed or None in map(finite_number, value):
        several = "numbers" if count is None else f"{count} numbers"
        raise AnnotationError(message(who, f"{name} to be {several}", shown(value)))
    return value


def _digest(text: str) -> bytes:
    # An id may be a file name that is not UTF-8.
    return hashlib.sha256(text.encode(errors="surrogatepass")).digest()


def listed(items: Sequence[object]) -> str:
    """Name the first few items in a text."""
    first = short(", ".join(map(str, items[:_LISTED])))
    return f"{first}, ..." if len(items) > _LISTED else first
