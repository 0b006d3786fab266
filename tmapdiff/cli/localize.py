"""`tmapdiff localize`: find moments in videos."""

import os
import sys
import textwrap
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from tmapdiff._core.checks import check_no_address, check_range, message
from tmapdiff.cli import options
from tmapdiff.cli.output import Output, progress
from tmapdiff.errors import ArgumentError

if TYPE_CHECKING:
    from tmapdiff.data.text_tracks import Cue
    from tmapdiff.pipelines import LocalizedMoment, MomentLocalizationOutput
    from tmapdiff.video import VideoFeatures

EXAMPLES = """
tmapdiff localize cooking.mp4 "she cuts the onion" --model runs/vgg/pipeline
tmapdiff localize cooking.mp4 "she cuts the onion" "the oven is opened" --model runs/vgg/pipeline \\
    --samples 8 --map map.png --strip strip.png
tmapdiff localize cooking.mp4 "an egg is broken" --answer set --model runs/vgg/pipeline
tmapdiff localize AO8RW "a person opens a door" --features vgg16.h5 --model runs/vgg/pipeline --json
tmapdiff localize AO8RW.npy "a person opens a door" --seconds-per-feature 0.5 --model user/pipeline
tmapdiff localize holiday.mp4 "a dog runs into the sea" --zero-shot openai/clip-vit-base-patch32
tmapdiff localize videos "a dog barks" "it snows" --model runs/vgg/pipeline --out answers.jsonl
tmapdiff localize talk.vtt "where the budget is decided" \
    --text-encoder sentence-transformers/all-MiniLM-L6-v2
"""
_MOMENT = ("start", "end", "score", "spread")
_THUMBNAILS = 8
_FEATURES = (".npy", ".npz", ".pt")
_EXCERPT = 60  # characters of the text of a moment
_TITLE = 45  # characters per line above a map


def localize(
    context: typer.Context,
    console: Output,
    video: Annotated[
        str,
        typer.Argument(
            metavar="VIDEO...",
            help="Videos, text tracks (.srt, .vtt or .jsonl) or folders of either; or a file of "
            "features (.npy, .npz or .pt); or, with --features, an id.",
        ),
    ],
    sentences: Annotated[
        list[str], typer.Argument(metavar="SENTENCE...", help="Descriptions of moments to find.")
    ],
    answering: options.PipelineOptions,
    steps: options.StepsOption = None,
    samples: options.SamplesOption = None,
    top: options.TopOption = 5,
    ranking: options.RankingOption = None,
    answer: options.AnswerOption = "ranked",
    seed: options.NoiseSeedOption = 0,
    features: Annotated[Path | None, "STORE", "Feature store, with VIDEO as an id in it."] = None,
    seconds_per_feature: Annotated[
        float | None, "Seconds between features. [default: the store's, or the pipeline's]"
    ] = None,
    map: Annotated[
        Path | None,
        "PNG",
        "Plot the map of scores and, below it, the probability that each clip lies in the answer. "
        "Several sentences get one file each.",
    ] = None,
    strip: Annotated[
        Path | None, "PNG", "Plot the moments below frames of the video; likewise."
    ] = None,
    saliency: Annotated[
        float | None,
        "SECONDS",
        "With --json, add the probability that each whole piece of this duration lies in the "
        "answer.",
    ] = None,
    pairs: Annotated[
        Literal["product", "zip"],
        "For several videos: search each for every sentence, or for one each, in order.",
    ] = "product",
    out: Annotated[
        Path | None,
        "JSONL",
        "Write answers to this file as they arrive, one per line. The same command resumes.",
    ] = None,
    device: options.DeviceOption = "auto",
) -> None:
    """Find the moments of videos that sentences describe.

    Higher scores mean better fits. With several samples, the spread is the standard deviation of
    the moment's map cell over them. With --answer set, the number of moments is estimated and may
    be 0, and scores are probabilities that a moment is right.

    Videos longer than those of training are searched in windows.

    For several videos, or with --out, --json prints answers as they arrive, one per line.
    Unreadable videos are reported, the others are answered, and the exit code is 1.
    """
    from tmapdiff.data.text_tracks import TRACK_SUFFIXES, load_text_track

    videos, sentences = _split(video, sentences, features is not None)
    of_features = features is not None or Path(video).suffix in _FEATURES
    is_track = Path(video).suffix.lower() in TRACK_SUFFIXES
    is_folder = features is None and os.path.isdir(video)
    several = len(videos) > 1 or is_folder or out is not None
    if len(videos) > 1 and any(Path(one).suffix in _FEATURES for one in videos):
        text = "pass a file of features alone, without other videos."
        raise typer.BadParameter(text, param_hint="'VIDEO...'")
    options.refuse_idle(
        ("--seconds-per-feature", seconds_per_feature is not None and not of_features, "features"),
        ("--strip", strip and (of_features or is_track), "a video"),
        ("--pairs", pairs == "zip" and not several, "several videos"),
        ("--out", out and of_features, "videos or text tracks"),
        ("--map", map and several, "a single video, without --out"),
        ("--strip", strip and several, "a single video, without --out"),
        ("--ranking", ranking and answer == "set", "--answer ranked"),
        ("--saliency", saliency is not None and not console.as_json, "--json"),
        ("--saliency", saliency is not None and several, "a single video, without --out"),
    )
    if saliency is not None:
        check_range("localize", "--saliency", saliency, 0, open_low=True)
    sampling: dict[str, Any] = {
        "num_inference_steps": steps,
        "num_samples": samples,
        "top_n": top,
        "ranking": ranking,
        "answer": answer,
    }
    import torch

    from tmapdiff.maps import resample_saliency
    from tmapdiff.pipelines import list_sources
    from tmapdiff.recipes import answer_videos, pair

    if features is None:
        for one in videos:
            check_no_address("localize", one)
    pipeline = answering.load(device)
    if several:
        listed = list_sources(videos, text_tracks=pipeline.takes_text_tracks)
        if out is not None:  # as it may look like a text track
            listed = [one for one in listed if one.resolve() != out.resolve()]
        asked = pair(listed, sentences, pairs)
        # Not as typed: a file is resumed after "runs/x/", too.
        about = {"model": Path(answering.name).as_posix()}
        answers = answer_videos(pipeline, asked, out=out, settings=about, seed=seed, **sampling)
        if _print_answers(console, answers, len(asked)):
            raise typer.Exit(1)
        return
    pipeline.set_progress_bar_config(disable=None)  # without a terminal
    source: Any = video
    if of_features:
        source = _features_of(console, video, features, seconds_per_feature, pipeline)
    found: Any = pipeline(
        source,
        sentences,
        **sampling,
        # One each, so that an answer does not depend on the other sentences.
        generator=[torch.Generator().manual_seed(seed) for _ in sentences],
    )
    files: list[Path] = []
    if map is not None:
        files += _save(map, [_draw_map(found, *item) for item in enumerate(sentences)])
    if strip is not None:
        files += _save(strip, _draw_strips(found, sentences, video))
    windows = found.windows[0] if found.windows else []
    _print_windows(console, windows)
    cues = load_text_track(video) if is_track and not of_features else ()
    presence = found.presence or [None] * len(sentences)
    found_of: list[dict[str, Any]] = []
    for index, (sentence, share) in enumerate(zip(sentences, presence, strict=True)):
        moments = found.moments[index]
        _print_moments(console, sentence, moments, share, cues)
        unknown = pipeline.unknown_words(sentence)
        record = {"sentence": sentence, "moments": moments, "unknown_words": unknown}
        if share is not None:
            record["presence"] = share
        if saliency is not None:
            seconds = found.clip_seconds[0], found.durations[0], saliency
            record["saliency"] = resample_saliency(found.saliency[index], *seconds)
        found_of.append(record)
    if files:
        console.line(f"written: {', '.join(str(file) for file in files)}")
    document = {"video": video, "duration": found.durations[0], "windows": windows}
    document |= {"model": answering.name, "seed": seed, **options.given(context)}
    console.document({**document, "answers": found_of, "files": files})


def _split(video: str, others: Sequence[str], is_id: bool) -> tuple[list[str], list[str]]:
    """Split arguments into videos and sentences; leading names of videos and folders are videos."""
    videos, sentences = [video], list(others)
    while sentences and not is_id and _looks_like_videos(sentences[0]):
        videos.append(sentences.pop(0))
    if not sentences:
        raise typer.BadParameter("pass a sentence after the videos.", param_hint="'SENTENCE...'")
    return videos, sentences


def _looks_like_videos(text: str) -> bool:
    from tmapdiff.data.text_tracks import TRACK_SUFFIXES
    from tmapdiff.video.extraction import VIDEO_SUFFIXES

    suffixes = (*VIDEO_SUFFIXES, *TRACK_SUFFIXES, *_FEATURES)
    # Not Path.is_dir, which raises OSError for long sentences.
    return Path(text).suffix.lower() in suffixes or os.path.isdir(text)


def _print_answers(
    console: Output, answers: Iterator[Sequence[Mapping[str, Any]]], num_videos: int
) -> int:
    """Print answers as they arrive; return the number of failures."""
    from tmapdiff.pipelines import LocalizedMoment

    failed = 0
    # No bar on a terminal that shows the answers.
    bar = nullcontext(lambda: None) if sys.stdout.isatty() else progress("videos", num_videos)
    with bar as advance:
        for records in answers:
            for record in records:
                console.document(record, indent=None)
                if "error" in record:
                    failed += 1
                    video, error = record["video"], record["error"]
                    console.warning(error if video in error else f"{video}: {error}")
                    continue
                moments = [LocalizedMoment(*map(one.get, _MOMENT)) for one in record["moments"]]
                _print_windows(console, record["windows"])
                title, share = f"{record['video']}: {record['sentence']}", record.get("presence")
                _print_moments(console, title, moments, share)
            advance()
    return failed


def _print_windows(console: Output, windows: Sequence[Sequence[float]]) -> None:
    if windows:
        start, end = windows[0]
        console.line(
            f"searched in {len(windows)} windows of {end - start:.1f} s, "
            f"as the video is longer than those of training"
        )


def _features_of(
    console: Output,
    video: str,
    store: Path | None,
    seconds_per_feature: float | None,
    pipeline: Any,
) -> "VideoFeatures":
    """Read the features of a video in a store, or of a file, opening its folder as a store."""
    from tmapdiff.data import NpyFeatureStore, NpzFeatureStore, PtFeatureStore, open_feature_store
    from tmapdiff.data._durations import stated_seconds
    from tmapdiff.data._spelling import find_spelling
    from tmapdiff.data._video_ids import video_id_of
    from tmapdiff.video import VideoFeatures
    from tmapdiff.video.frame_encoder import other_encoder

    opened: Any
    if store is not None:
        opened = open_feature_store(store, seconds_per_feature)
        spelling, names = find_spelling([video], opened)
        video_id = names.get(video, video)
        if spelling:
            console.warning(f"the features spell {video} {spelling}")
    else:
        kinds = {".npy": NpyFeatureStore, ".npz": NpzFeatureStore, ".pt": PtFeatureStore}
        path = Path(video)
        opened = kinds[path.suffix](path.parent, seconds_per_feature)
        video_id = video_id_of(path.name, path.suffix)
    array = opened[video_id]
    if text := other_encoder(pipeline.frame_encoder, opened):
        warnings.warn(text, stacklevel=2)
    fps = pipeline.config.fps
    rate = opened.seconds_per_feature or (1 / fps if fps else None)
    if rate is None:
        expected = "--seconds-per-feature, as neither the features nor the pipeline declare it"
        raise ArgumentError(message("localize", expected, "none"))
    duration = stated_seconds(opened.description, opened.attributes_of(video_id), "duration")
    return VideoFeatures(array, rate, len(array) * rate if duration is None else duration)


def _print_moments(
    console: Output,
    sentence: str,
    moments: "Sequence[LocalizedMoment]",
    presence: float | None,
    cues: "Sequence[Cue]" = (),
) -> None:
    if presence is not None:
        sentence += f" (in this video with probability {presence:.0%})"
        if not moments:
            console.line(f"{sentence}\nnot found in this video")
            return
    rows = []
    for rank, one in enumerate(moments, start=1):
        spread = "-" if one.spread is None else f"{one.spread:.3f}"
        row = [f"{rank}", f"{one.start:.2f}", f"{one.end:.2f}", f"{one.score:.3f}", spread]
        if cues:
            row.append(_excerpt(one, cues))
        rows.append(row)
    columns = ["", "start (s)", "end (s)", "score", "spread", *(["text"] if cues else [])]
    console.table(columns, rows, sentence)


def _excerpt(moment: "LocalizedMoment", cues: "Sequence[Cue]") -> str:
    """Return the first words of the cues that overlap the moment by half of either."""
    texts = []
    for cue in cues:
        overlap = min(cue.end, moment.end) - max(cue.start, moment.start)
        if overlap * 2 >= min(cue.end - cue.start, moment.end - moment.start):
            texts.append(cue.text)
    text = " ".join(texts)
    # Cut between words, if the language has spaces.
    return text if len(text) <= _EXCERPT else f"{text[: _EXCERPT - 4].rsplit(' ', 1)[0]} ..."


def _draw_map(found: "MomentLocalizationOutput", index: int, sentence: str) -> Any:
    from tmapdiff.plots import plot_map

    return plot_map(
        found.maps[index],
        clip_seconds=found.clip_seconds[index],
        predictions=[(moment.start, moment.end) for moment in found.moments[index]],
        title=textwrap.fill(sentence, _TITLE),
        limits=None,
        saliency=found.saliency[index],
    ).figure


def _draw_strips(
    found: "MomentLocalizationOutput", sentences: Sequence[str], video: str
) -> list[Any]:
    import numpy as np

    from tmapdiff.plots import plot_video_strip
    from tmapdiff.video import open_video

    duration = found.durations[0]
    with open_video(video) as reader:
        frames = list(reader.sample(_THUMBNAILS / duration))
    return [
        plot_video_strip(
            np.stack([frame.image for frame in frames]),
            [frame.time for frame in frames],
            [(moment.start, moment.end) for moment in moments],
            scores=[moment.score for moment in moments],
            duration=duration,
            title=sentence,
            num_thumbnails=_THUMBNAILS,
        )
        for sentence, moments in zip(sentences, found.moments, strict=True)
    ]


def _save(path: Path, figures: Sequence[Any]) -> Iterator[Path]:
    """Save figures, numbered if there are several."""
    from tmapdiff._core.files import written_beside

    for number, figure in enumerate(figures, start=1):
        place = path if len(figures) == 1 else path.with_stem(f"{path.stem}-{number}")
        with written_beside(place) as new:
            figure.savefig(new)
        yield place
