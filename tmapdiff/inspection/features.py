"""Inspection of feature stores, which reads every feature."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tmapdiff._core.files import list_visible
from tmapdiff.data._durations import covers, stated_seconds
from tmapdiff.data._video_ids import video_id_of
from tmapdiff.errors import TmapdiffError
from tmapdiff.inspection.report import Finding, Inspection, OnItem, about, spread

# A store, and the number of features per video with usable features.
Features = tuple[Any, Mapping[str, int]]


def inspect_features(
    path: Path, seconds_per_feature: float | None, on_item: OnItem
) -> tuple[Inspection, Features]:
    """Inspect a feature store; return the store and its lengths too."""
    from tmapdiff.data import open_feature_store  # imported here, as `coverage` does not need it

    store: Any = open_feature_store(path, seconds_per_feature)
    lengths: dict[str, int] = {}
    empty: list[str] = []
    damaged: list[str] = []
    durations: dict[str, float] = {}
    findings: list[Finding] = []
    videos = store.video_ids
    for video_id in videos:
        on_item()
        try:
            features = store[video_id]
            attributes = store.attributes_of(video_id)
            who = f"{store.description}, video {video_id!r}"
            duration = stated_seconds(who, attributes, "duration")
        except TmapdiffError as error:
            findings.append(Finding("features that cannot be used", str(error), (video_id,)))
            continue
        lengths[video_id] = len(features)
        if not features.any():
            empty.append(video_id)
        if "damage" in attributes:
            damaged.append(f"{video_id} ({attributes['damage']})")
        if store.seconds_per_feature is not None and duration is not None:
            durations[video_id] = duration
    findings += coverage(store, lengths, durations)
    findings += about("features of zeros", "all features of {n} videos are 0", empty)
    findings += about("damaged videos", "{n} videos were damaged", damaged)
    findings += _unfinished(path)
    stated = {name: one for name, one in store.attributes.items() if name != "seconds_per_feature"}
    facts = {
        path.resolve().name: {
            "format": type(store).__name__.removesuffix("FeatureStore"),
            "videos": len(videos),
            "features": sum(lengths.values()),
            "features per video": spread(list(lengths.values())),
            "width": store.feature_dim,
            "seconds per feature": store.seconds_per_feature,
            **stated,
        }
    }
    return Inspection(path, "features", facts, tuple(findings)), (store, lengths)


def coverage(
    store: Any, lengths: Mapping[str, int], durations: Mapping[str, float]
) -> Iterator[Finding]:
    """Compare the time that features cover with the durations of their videos."""
    seconds = store.seconds_per_feature
    if seconds is None:
        return
    wrong, lasting, turned = [], [], []
    for video_id, duration in durations.items():
        if video_id not in lengths:
            continue
        covered = lengths[video_id] * seconds
        # The condition on which `pool_features` refuses them.
        if not covers(lengths[video_id], seconds, duration):
            if covers(store.feature_dim, seconds, duration):
                turned.append(video_id)
            wrong.append(f"{video_id} ({covered:.4g} s of {duration:.4g} s)")
            lasting.append(duration / lengths[video_id])
    what = f"at {seconds:.4g} s per feature, the features of {{n}} videos do not fit the duration"
    detail = f"; they would fit at {spread(lasting, ' s')} per feature"
    yield from about("wrong rate", what, wrong, detail)
    if len(turned) == len(wrong):  # of all videos: the width may fit one duration by chance
        what = "the features of {n} videos fit the duration when transposed; transpose them"
        yield from about("transposed features", what, turned)


def _unfinished(path: Path) -> list[Finding]:
    parts = path.with_name(f"{path.name}.parts")
    names = [one.name for one in list_visible(parts)] if parts.is_dir() else []
    left = [video_id_of(name, ".npz") for name in names if name.endswith(".npz")]
    what = f"features of {{n}} videos are still in {parts.name}; extract or convert again"
    return about("unfinished store", what, left)
