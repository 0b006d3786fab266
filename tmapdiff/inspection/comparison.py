"""Checks that two inspected files or folders fit together."""

from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from typing import TYPE_CHECKING, Any

from tmapdiff._core.checks import message
from tmapdiff.data import Annotation, AnnotationSet, Vocabulary
from tmapdiff.data._spelling import find_spelling
from tmapdiff.errors import ArgumentError
from tmapdiff.inspection.features import Features, coverage
from tmapdiff.inspection.report import Finding, Kind, about

if TYPE_CHECKING:
    from tmapdiff.pipelines import MomentLocalizationPipeline

_TOLERANCE = 1.0  # seconds by which annotations may differ from their video, as they are rounded


def compare(kinds: tuple[Kind, Kind], contents: tuple[Any, Any]) -> list[Finding]:
    """Return the mismatches of two inspected places; ArgumentError if nothing compares them."""
    comparisons: Mapping[tuple[Kind, Kind], Callable[[Any, Any], Iterator[Finding]]] = {
        ("annotations", "annotations"): _two_annotations,
        ("annotations", "features"): _annotations_and_features,
        ("annotations", "videos"): _annotations_and_videos,
        ("annotations", "pipeline"): _annotations_and_pipeline,
        ("features", "videos"): _features_and_videos,
        ("features", "pipeline"): _features_and_pipeline,
    }
    if kinds not in comparisons:
        kinds, contents = (kinds[1], kinds[0]), (contents[1], contents[0])
    if kinds not in comparisons:
        expected = f"something that {kinds[1]} can be compared with"
        raise ArgumentError(message("inspect", expected, kinds[0]))
    return list(comparisons[kinds](*contents))


def _all(sets: Mapping[str, AnnotationSet]) -> list[Annotation]:
    return [item for one in sets.values() for item in one]


def _missing(annotated: list[str], there: list[str], what: str) -> Iterator[Finding]:
    lacking, unused = set(annotated) - set(there), set(there) - set(annotated)
    yield from about(f"missing {what}", f"{{n}} annotated videos have no {what}", sorted(lacking))
    text = f"{{n}} videos have {what} but no query"
    yield from about(f"{what} without annotations", text, sorted(unused))


def _two_annotations(
    one: Mapping[str, AnnotationSet], other: Mapping[str, AnnotationSet]
) -> Iterator[Finding]:
    ids = [{item.video_id for item in _all(sets)} for sets in (one, other)]
    yield from about("shared videos", "{n} videos in common", sorted(ids[0] & ids[1]))


def _annotations_and_features(
    sets: Mapping[str, AnnotationSet], features: Features
) -> Iterator[Finding]:
    store, lengths = features
    durations = {item.video_id: item.duration for item in _all(sets)}
    spelling, names = find_spelling(list(durations), set(store.video_ids))
    if spelling:
        what = f"the features spell the ids of {{n}} videos {spelling}"
        yield from about("other spelling", what, list(names.values()))
    durations = {names.get(one, one): duration for one, duration in durations.items()}
    yield from _missing(list(durations), list(store.video_ids), "features")
    yield from coverage(store, lengths, durations)


def _annotations_and_videos(
    sets: Mapping[str, AnnotationSet], durations: Mapping[str, float]
) -> Iterator[Finding]:
    items = _all(sets)
    yield from _missing([item.video_id for item in items], list(durations), "video")
    # DiDeMo's are segments of 5 s in the first 30 s, of which a video's last may be shorter.
    times = {time for one in items for time in (one.duration, *chain(*one.moments))}
    in_segments = times <= set(range(0, 31, 5))
    tolerance = 5 if in_segments else _TOLERANCE
    late = [
        f"{item.qid} ({end:.4g} s of {durations[item.video_id]:.4g} s)"
        for item in items
        if item.moments and item.video_id in durations
        if (end := max(end for _, end in item.moments)) > durations[item.video_id] + tolerance
    ]
    what = "moments of {n} queries end after the video, qids"
    yield from about("moments past the end", what, late)
    stated = {(one.video_id, one.duration) for one in items if one.video_id in durations}
    wrong = [
        f"{video} ({duration:.4g} s of {durations[video]:.4g} s)"
        for video, duration in sorted(stated)
        if not in_segments
        and abs(duration - durations[video]) > max(_TOLERANCE, 0.05 * durations[video])
    ]
    what = "the annotated durations of {n} videos are not theirs"
    yield from about("durations that differ", what, wrong)


def _annotations_and_pipeline(
    sets: Mapping[str, AnnotationSet], pipeline: "MomentLocalizationPipeline"
) -> Iterator[Finding]:
    if (vocabulary := pipeline.vocabulary) is not None:
        unknown = [item.qid for item in _all(sets) if _knows_none(vocabulary, item.query)]
        what = "the pipeline knows no word of {n} queries, qids"
        yield from about("unknown words", what, unknown)


def _knows_none(vocabulary: Vocabulary, query: str) -> bool:
    try:
        return set(vocabulary.indices(query)) == {1}
    except ArgumentError:  # it has no word, which inspecting the annotations reports
        return False


def _features_and_videos(features: Features, durations: Mapping[str, float]) -> Iterator[Finding]:
    store, lengths = features
    lacking = sorted(set(durations) - set(store.video_ids))
    yield from about("missing features", "{n} videos have no features", lacking)
    yield from coverage(store, lengths, durations)


def _features_and_pipeline(
    features: Features, pipeline: "MomentLocalizationPipeline"
) -> Iterator[Finding]:
    from tmapdiff.video.frame_encoder import other_encoder  # needs torch

    store, _ = features
    wanted = pipeline.localizer.encoder.config.clip_channels
    if store.feature_dim != wanted:
        text = f"the pipeline takes features of width {wanted}, the store has {store.feature_dim}"
        yield Finding("wrong width", text)
    rate, fps = store.seconds_per_feature, pipeline.config.fps
    if rate and fps and abs(rate * fps - 1) > 0.01:
        text = f"the pipeline takes {fps:g} features per second, the store has {1 / rate:.4g}"
        yield Finding("wrong rate", text)
    encoder = pipeline.frame_encoder
    if text := other_encoder(encoder, store):
        yield Finding("another frame encoder", text)
    if encoder is not None and "model_sha256" in store.left_out:
        text = "the store does not record the frame encoder of its features; convert it"
        yield Finding("unknown frame encoder", text)
