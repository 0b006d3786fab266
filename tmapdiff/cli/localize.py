"""`tmapdiff localize`: from a video and sentences to moments."""

import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tmapdiff._core.checks import check_range, message
from tmapdiff.cli import options
from tmapdiff.cli.output import JsonOption, Output
from tmapdiff.errors import ArgumentError

if TYPE_CHECKING:
    from tmapdiff.pipelines import LocalizedMoment, MomentLocalizationOutput
    from tmapdiff.video import VideoFeatures

EXAMPLES = """
tmapdiff localize cooking.mp4 "she cuts the onion" --model runs/vgg/pipeline
tmapdiff localize cooking.mp4 "she cuts the onion" "the oven is opened" --model runs/vgg/pipeline \\
    --samples 8 --map map.png --strip strip.png
tmapdiff localize AO8RW "a person opens a door" --features vgg16.h5 --model runs/vgg/pipeline --json
tmapdiff localize AO8RW.npy "a person opens a door" --seconds-per-feature 0.5 --model user/pipeline
"""
_THUMBNAILS = 8
_TITLE = 45  # letters of a line above a map


def localize(
    context: typer.Context,
    video: Annotated[
        str,
        typer.Argument(
            metavar="VIDEO",
            help="A video; a file of features (.npy, .npz or .pt); or, with --features, an id.",
        ),
    ],
    sentences: Annotated[
        list[str], typer.Argument(metavar="SENTENCE...", help="What to look for, in words.")
    ],
    model: options.ModelOption,
    steps: options.StepsOption = None,
    samples: options.SamplesOption = None,
    top: Annotated[int, typer.Option(help="Moments of each sentence, at most.")] = 5,
    ranking: options.RankingOption = None,
    seed: options.NoiseSeedOption = 0,
    features: Annotated[
        Path | None,
        typer.Option(metavar="STORE", help="Feature store in which VIDEO is an id."),
    ] = None,
    seconds_per_feature: Annotated[
        float | None,
        typer.Option(
            help="Seconds from one feature to the next. [default: what the store says, or the "
            "pipeline's]"
        ),
    ] = None,
    map: Annotated[
        Path | None,
        typer.Option(
            metavar="PNG",
            help="Draw the map of scores, and below it how likely each clip lies in the "
            "answer; of several sentences, one file each.",
        ),
    ] = None,
    strip: Annotated[
        Path | None,
        typer.Option(metavar="PNG", help="Draw the moments below a strip of the video; likewise."),
    ] = None,
    saliency: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            help="With --json, how likely each piece of so many seconds lies in the answer.",
        ),
    ] = None,
    device: options.DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Find the moments of a video that sentences describe.

    The score tells which moment fits better; with several samples, the spread is the standard
    deviation of it over the samples. A video that is longer than those of training is searched in
    windows of their length, and the answer says so.
    """
    is_file_of_features = Path(video).suffix in (".npy", ".npz", ".pt")
    without_pictures = features is not None or is_file_of_features
    options.refuse_idle(
        ("--seconds-per-feature", seconds_per_feature and not without_pictures, "features"),
        ("--strip", strip and without_pictures, "a video"),
        ("--saliency", saliency is not None and not as_json, "--json"),
    )
    if saliency is not None:
        check_range("localize", "--saliency", saliency, 0, open_low=True)
    with Output(as_json) as out:
        import torch

        from tmapdiff._core.checks import check_no_address
        from tmapdiff.maps import resample_saliency
        from tmapdiff.pipelines import MomentLocalizationPipeline

        if features is None:
            check_no_address("localize", video)
        pipeline = MomentLocalizationPipeline.from_pretrained(model).to(options.find_device(device))
        pipeline.set_progress_bar_config(disable=None)  # without a terminal
        source: Any = video
        if without_pictures:
            source = _features_of(out, video, features, seconds_per_feature, pipeline.config.fps)
        found = pipeline(
            source,
            sentences,
            num_inference_steps=steps,
            num_samples=samples,
            top_n=top,
            ranking=ranking,
            # One each: an answer does not depend on what else is asked.
            generator=[torch.Generator().manual_seed(seed) for _ in sentences],
        )
        files: list[Path] = []
        if map is not None:
            files += _save(map, [_draw_map(found, *item) for item in enumerate(sentences)])
        if strip is not None:
            files += _save(strip, _draw_strips(found, sentences, video))
        windows = found.windows[0] if found.windows else []
        if windows:
            start, end = windows[0]
            out.line(
                f"searched in {len(windows)} windows of {end - start:.1f} s, "
                f"as the video is longer than those of training"
            )
        for sentence, moments in zip(sentences, found.moments, strict=True):
            _print_moments(out, sentence, moments)
        if files:
            out.line(f"written: {', '.join(str(file) for file in files)}")
        answers: list[dict[str, Any]] = [
            {"sentence": one, "moments": moments, "unknown_words": pipeline.unknown_words(one)}
            for one, moments in zip(sentences, found.moments, strict=True)
        ]
        if saliency is not None:
            for answer, clips in zip(answers, found.saliency, strict=True):
                seconds = found.clip_seconds[0], found.durations[0], saliency
                answer["saliency"] = resample_saliency(clips, *seconds)
        about = {"video": video, "duration": found.durations[0], "windows": windows}
        about |= {"model": model, "seed": seed, **options.given(context)}
        out.document({**about, "answers": answers, "files": files})


def _features_of(
    out: Output,
    video: str,
    store: Path | None,
    seconds_per_feature: float | None,
    fps: float | None,
) -> "VideoFeatures":
    """Read features of a store, or of a file, which is then part of a folder of such."""
    from tmapdiff.data import NpyFeatureStore, NpzFeatureStore, PtFeatureStore, open_feature_store
    from tmapdiff.data._durations import stated_duration
    from tmapdiff.data._spelling import find_spelling
    from tmapdiff.data._video_ids import video_id_of
    from tmapdiff.video import VideoFeatures

    opened: Any
    if store is not None:
        opened = open_feature_store(store, seconds_per_feature)
        spelling, names = find_spelling([video], opened)
        video_id = names.get(video, video)
        if spelling:
            out.warning(f"{video} is named {spelling} in the features")
    else:
        kinds = {".npy": NpyFeatureStore, ".npz": NpzFeatureStore, ".pt": PtFeatureStore}
        path = Path(video)
        opened = kinds[path.suffix](path.parent, seconds_per_feature)
        video_id = video_id_of(path.name, path.suffix)
    array = opened[video_id]
    rate = opened.seconds_per_feature or (1 / fps if fps else None)
    if rate is None:
        expected = "--seconds-per-feature, as neither the features nor the pipeline say it"
        raise ArgumentError(message("localize", expected, "none"))
    duration = stated_duration(opened.description, opened.attributes_of(video_id))
    return VideoFeatures(array, rate, len(array) * rate if duration is None else duration)


def _print_moments(out: Output, sentence: str, moments: "Sequence[LocalizedMoment]") -> None:
    rows = []
    for rank, one in enumerate(moments, start=1):
        spread = "-" if one.spread is None else f"{one.spread:.3f}"
        rows.append([f"{rank}", f"{one.start:.2f}", f"{one.end:.2f}", f"{one.score:.3f}", spread])
    out.table(["", "start (s)", "end (s)", "score", "spread"], rows, sentence)


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
    """Save figures, numbered where there are several."""
    from tmapdiff._core.files import written_beside

    for number, figure in enumerate(figures, start=1):
        place = path if len(figures) == 1 else path.with_stem(f"{path.stem}-{number}")
        with written_beside(place) as new:
            figure.savefig(new)
        yield place
