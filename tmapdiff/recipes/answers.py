"""Answers for many videos, resumable after an interruption."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import torch

from tmapdiff._core.checks import check_choice, check_int, foreign_errors, message
from tmapdiff._core.digests import add_tensors
from tmapdiff._core.files import written_beside
from tmapdiff.data._reading import reading
from tmapdiff.errors import AnnotationError, ArgumentError, FileError
from tmapdiff.pipelines import MomentLocalizationPipeline, Pairs
from tmapdiff.video.extraction import size_and_time

Record = dict[str, Any]


def pair(videos: Sequence[Path], sentences: Sequence[str], pairs: Pairs) -> dict[Path, list[str]]:
    """Pair each video with every sentence, or with one each, in order.

    Args:
        videos: The videos, possibly with duplicates.
        sentences: The sentences.
        pairs: `product` or `zip`.

    Raises:
        ConfigError: If `pairs` is unknown.
        ArgumentError: If, with `zip`, there are not as many sentences as videos.
    """
    who = "localize"
    if check_choice(who, "pairs", pairs, get_args(Pairs)) == "product":
        return {video: list(dict.fromkeys(sentences)) for video in videos}
    if len(videos) != len(sentences):
        expected = f"a sentence for each of {len(videos)} videos"
        raise ArgumentError(message(who, expected, f"{len(sentences)} sentences"))
    asked: dict[Path, list[str]] = {}
    for video, sentence in dict.fromkeys(zip(videos, sentences, strict=True)):
        asked.setdefault(video, []).append(sentence)
    return asked


def answer_videos(
    pipeline: MomentLocalizationPipeline,
    asked: Mapping[Path, Sequence[str]],
    *,
    out: str | os.PathLike[str] | None = None,
    settings: Mapping[str, Any] | None = None,
    seed: int = 0,
    **options: Any,
) -> Iterator[list[Record]]:
    """Find the moments that sentences describe in videos; yield the answers of one video at a time.

    A record has `video` and `sentence`, then either `error` or `duration`, `windows`, `moments`,
    `unknown_words` and, for sets, `presence`, the probability that the video has a moment. It also
    has `seed`, `settings`, `options` and, with `out`, a digest of the pipeline.

    With `out`, records are appended to that file. Records of an earlier run with the same settings
    are yielded from the file. Those of changed videos, and errors, are removed from it.

    Args:
        pipeline: The pipeline to use.
        asked: The sentences for each video.
        out: File of JSON lines to create or continue.
        settings: Further fields of each record, such as the name of the model.
        seed: Seed of the noise of each answer.
        **options: As for the call of the pipeline: `num_samples`, `top_n`, `answer`, ...

    Raises:
        ArgumentError: If a sentence has no word that the model knows, or `out` has answers with
            other settings.
        FileError, AnnotationError: If `out` cannot be read or written, or holds something else.
        TmapdiffError: As the pipeline, for errors that no video causes.
    """
    check_int("answer_videos", "the number of videos", len(asked), at_least=1)
    sentences = dict.fromkeys(one for several in asked.values() for one in several)
    pipeline.encode_queries(list(sentences))  # raise errors of sentences before reading videos
    settings = {**(settings or {}), **options, "seed": seed}
    if out is not None:
        settings["pipeline_sha256"] = _digest(pipeline)
    settings = json.loads(json.dumps(settings))
    known = {} if out is None else _resumed(Path(out), settings)
    for video, several in asked.items():
        identity = _identity(video)
        kept = {
            one: known[str(video), one]
            for one in several
            if identity and (str(video), one) in known
        }
        new = [one for one in several if one not in kept]
        made = _ask(pipeline, video, new, seed, options) if new else []
        for record in made:
            record.update(identity or {}, **settings)
            kept[record["sentence"]] = record
        if out is not None and made:
            lines = "".join(json.dumps(one) + "\n" for one in made)
            failed = f"cannot write {out}"
            with foreign_errors(FileError, failed), open(out, "a", encoding="utf-8") as file:
                file.write(lines)
        yield [kept[one] for one in several]


def _ask(
    pipeline: MomentLocalizationPipeline,
    video: Path,
    sentences: Sequence[str],
    seed: int,
    options: Mapping[str, Any],
) -> list[Record]:
    found: Any = pipeline(
        video,
        sentences,
        # One each, so that an answer does not depend on the other sentences.
        generator=[torch.Generator().manual_seed(seed) for _ in sentences],
        on_error="skip",
        **options,
    )
    records: list[Record] = []
    for index, sentence in enumerate(sentences):
        record: Record = {"video": str(video), "sentence": sentence}
        if found.errors[index] is not None:
            record["error"] = str(found.errors[index])
        else:
            record["duration"] = found.durations[index]
            record["windows"] = found.windows[index] if found.windows else []
            record["moments"] = [vars(one) for one in found.moments[index]]
            if found.presence is not None:
                record["presence"] = found.presence[index]
            record["unknown_words"] = pipeline.unknown_words(sentence)
        records.append(record)
    return records


def _digest(pipeline: MomentLocalizationPipeline) -> str:
    """Identify the pipeline by its parts, as a model may be retrained under the same name."""
    scheduler = getattr(pipeline.scheduler, "config", {})
    configs = [pipeline.config, pipeline.localizer.config, scheduler]
    stated: list[Any] = [
        {name: one[name] for name in one if not name.startswith("_")} for one in configs
    ]
    words, frames = pipeline.vocabulary, pipeline.frame_encoder
    stated += [words and [*words.words, words.rule], frames and frames.fingerprint]
    digest = hashlib.sha256(json.dumps(stated, sort_keys=True, default=str).encode())
    for module in (pipeline.localizer, pipeline.text_encoder):
        if module is not None:
            add_tensors(digest, module.state_dict().items())
    return digest.hexdigest()[:16]


def _identity(video: Path) -> dict[str, int] | None:
    """Return size and time of change of a file; None if it does not exist."""
    try:
        size, mtime = size_and_time(video)
    except (FileError, ValueError):
        return None
    return {"source_size": size, "source_mtime_ns": mtime}


def _resumed(path: Path, settings: Mapping[str, Any]) -> dict[tuple[str, str], Record]:
    """Read the answers of an earlier run; rewrite the file without errors and changed videos."""
    known: dict[tuple[str, str], Record] = {}
    with reading(path):
        written = path.read_bytes() if path.exists() else b""
    # If a run was killed, its last line may be incomplete.
    complete = written[: written.rfind(b"\n") + 1]
    for number, line in enumerate(complete.splitlines() or written.splitlines(), 1):
        who = f"{path} line {number}"
        with foreign_errors(AnnotationError, who):
            record = json.loads(line)
        if not isinstance(record, dict) or not {"video", "sentence"} <= record.keys():
            raise AnnotationError(message(who, "an answer of tmapdiff localize", "other JSON"))
        for name, value in settings.items():
            if record.get(name) != value:
                expected, hint = f"answers with {name} = {value!r}", "Use another file."
                raise ArgumentError(message(who, expected, repr(record.get(name)), hint))
        now = _identity(Path(record["video"])) or {}  # answers for a lost video stay
        if "error" not in record and now.items() <= record.items():
            known[str(record["video"]), str(record["sentence"])] = record
    with written_beside(path) as new:
        lines = (json.dumps(one) + "\n" for one in known.values())
        new.write_text("".join(lines), encoding="utf-8")
    return known
