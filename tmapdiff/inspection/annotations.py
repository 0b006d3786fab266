"""Inspection of annotations: queries, moments, words."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

from tmapdiff.data import (
    AnnotationFile,
    AnnotationFormat,
    AnnotationSet,
    find_annotations,
    tokenize,
)
from tmapdiff.errors import TmapdiffError
from tmapdiff.inspection.report import Finding, Inspection, about, spread


def inspect_annotations(
    path: Path, format: AnnotationFormat | None
) -> tuple[Inspection, dict[str, AnnotationSet]]:
    """Inspect the annotation files of a dataset; return the annotations too."""
    sets: dict[str, AnnotationSet] = {}
    splits: dict[str, str | None] = {}
    facts: dict[str, dict[str, Any]] = {}
    findings: list[Finding] = []
    for file in find_annotations(path, format):
        name = file.path.name
        try:
            loaded = file.load()
        except TmapdiffError as error:
            facts[name] = {"format": file.format, "split": file.split}
            findings.append(Finding("damaged annotations", str(error), (name,)))
            continue
        sets[name], splits[name] = loaded, file.split
        words, wordless = _words(loaded)
        facts[name] = _facts(file, loaded, words)
        findings += _findings(name, loaded, wordless)
    for one, other in combinations(sets, 2):
        if splits[one] != splits[other]:
            shared = sorted(set(sets[one].video_ids) & set(sets[other].video_ids))
            findings += about("shared videos", f"{{n}} videos are in {one} and in {other}", shared)
    return Inspection(path, "annotations", facts, tuple(findings)), sets


def _words(annotations: AnnotationSet) -> tuple[list[list[str]], list[int | str]]:
    words, wordless = [], []
    for item in annotations:
        try:
            words.append(tokenize(item.query))
        except TmapdiffError:
            wordless.append(item.qid)
    return words, wordless


def _facts(
    file: AnnotationFile, annotations: AnnotationSet, words: list[list[str]]
) -> dict[str, Any]:
    durations = {item.video_id: item.duration for item in annotations}
    moments = [moment for item in annotations for moment in item.moments]
    absent = sum(not item.moments for item in annotations)
    return {
        "format": file.format,
        "split": file.split,
        "queries": len(annotations),
        "videos": len(durations),
        "moments": len(moments),
        **({"queries without a moment": absent} if absent else {}),
        "moments per query": spread([len(item.moments) for item in annotations]),
        "duration of videos": spread(list(durations.values()), " s"),
        "length of moments": spread([end - start for start, end in moments], " s"),
        "words per query": spread([len(one) for one in words]),
        "vocabulary": len({word for one in words for word in one}),
    }


def _findings(
    name: str, annotations: AnnotationSet, wordless: list[int | str]
) -> Iterator[Finding]:
    report = annotations.report
    if report.cut_starts:
        text = f"{name}: {report.cut_starts:,} moments start before their video and were clipped"
        yield Finding("moments before the start", text)
    if report.cut_ends:
        text = f"{name}: {report.cut_ends:,} moments end after their video and were clipped"
        yield Finding("moments past the end", text)
    for reason, lines in report.dropped.items():
        what = f"{name}: {{n}} moments were left out, {reason}, in lines"
        yield from about("moments left out", what, lines)
    if not len(annotations):
        yield Finding("no annotations", f"{name}: no query is left")
    yield from about("queries without a word", f"{name}: {{n}} queries have no word", wordless)
    same: Mapping[Any, list[int | str]] = defaultdict(list)
    durations: Mapping[str, set[float]] = defaultdict(set)
    for item in annotations:
        same[item.video_id, " ".join(item.query.lower().split()), item.moments].append(item.qid)
        durations[item.video_id].add(item.duration)
    what = f"{name}: {{n}} queries repeat an earlier one (words, video and moments), qids"
    yield from about("duplicates", what, [qid for qids in same.values() for qid in qids[1:]])
    what = f"{name}: {{n}} videos have more than one duration"
    unsure = [video for video, found in durations.items() if len(found) > 1]
    yield from about("durations that differ", what, unsure)
