"""From a video and a sentence to moments, in one call."""

import json
import math
import os
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from diffusers import DiffusionPipeline
from diffusers import __version__ as diffusers_version
from torch import Tensor
from typing_extensions import Self

from tmapdiff._core.checks import check_choice, check_int, check_range, message
from tmapdiff._core.files import folder_to_save_in, written_beside
from tmapdiff._core.threads import Lock
from tmapdiff._version import __version__
from tmapdiff.data.clips import divide_video
from tmapdiff.data.text_tracks import TRACK_SUFFIXES, load_text_track
from tmapdiff.data.track_features import encode_text_track
from tmapdiff.data.words import Vocabulary, check_known_words
from tmapdiff.errors import (
    ArgumentError,
    CheckpointError,
    ConfigError,
    FeatureError,
    MissingDependencyError,
    TmapdiffError,
)
from tmapdiff.maps.presence import map_presence
from tmapdiff.models import (
    AnswerKind,
    DenoisingStep,
    Localization,
    MapLocalizer,
    MultimodalEncoder,
    Ranking,
    SimilarityEncoder,
    SimilarityLocalizer,
    TransformersTextEncoder,
)
from tmapdiff.models._base import check_safe
from tmapdiff.models.map_localizer import Generators, check_generators
from tmapdiff.pipelines._batches import Answer, Batch, Clips, Drawn, Steps, answers_of, spread_of
from tmapdiff.pipelines._saving import (
    PARTS,
    PIPELINE_FILES,
    SETTINGS,
    VOCABULARY,
    find_folder,
    load_part,
    read_index,
)
from tmapdiff.pipelines._sources import list_sources
from tmapdiff.pipelines._windows import (
    count_clips,
    divide_in_windows,
    generators_of_windows,
    summarize_durations,
)
from tmapdiff.pipelines.output import MergedMaps, MomentLocalizationOutput
from tmapdiff.schedulers import MapScheduler
from tmapdiff.video import (
    FrameEncoder,
    TransformersFrameEncoder,
    VideoFeatures,
    VideoSource,
    encode_video,
)
from tmapdiff.video.decoding import MAX_FPS

OutputType = Literal["moments", "pt", "np"]
OnError = Literal["raise", "skip"]
Pairs = Literal["product", "zip"]
TextFeatures = Literal["tokens", "sentence"]
Video = VideoSource | VideoFeatures
_Callback = Callable[["MomentLocalizationPipeline", int, int, dict[str, Tensor]], Any]
_KEPT_VIDEOS = 8
_ROWS_PER_CLIP = 4  # so that the similarity is smoothed over less than clips


class MomentLocalizationPipeline(DiffusionPipeline):
    """Finds the moments of videos that sentences describe: diffusers' way to use a trained model.

    Saves, loads and moves as diffusers' pipelines do, with all that it needs: the model, the words
    that it knows, and what makes features of videos.

    Args:
        localizer: The trained model.
        vocabulary: The words that the model was trained with; None with a `text_encoder`.
        frame_encoder: Makes features of frames. Without it, videos are features.
        text_encoder: Makes features of sentences, for a model trained on such.
        fps: Features per second, as in training; needed with a `frame_encoder`.
        clip_seconds: Seconds a clip lasts, as in training. By default the model's clips divide
            every video equally.
        text_features: What the `text_encoder` gives of a sentence: its `tokens`, or the whole
            `sentence` as one word. Defaults to what fits the model's channels, to tokens where both
            do, and to the sentence of a `SimilarityLocalizer` that compares no words. Where both
            fit a model with `aligned`, it has to be said.
        durations: Seconds that the videos of training lasted, or the shortest, the median and the
            longest of them, which are kept. Without `clip_seconds`, a video longer than all of them
            is searched in overlapping windows as long as the median; by a `SimilarityLocalizer` as
            a whole, in clips that last as long. By default every video is divided into as many
            clips, however long its moments then are.

    Raises:
        ConfigError: If the parts do not fit each other.
        ArgumentError: If a number is not positive.

    Example:
        >>> folder = "runs/vgg/pipeline"
        >>> pipe = MomentLocalizationPipeline.from_pretrained(folder)  # doctest: +SKIP
        >>> found = pipe("cooking.mp4", "she cuts the onion")  # doctest: +SKIP
        >>> print(found.moments[0][0])  # doctest: +SKIP
        12.1 to 17.9 s (score 0.81)
    """

    _optional_components = ["vocabulary", "frame_encoder", "text_encoder"]  # noqa: RUF012
    model_cpu_offload_seq = "frame_encoder->text_encoder->localizer"

    def __init__(
        self,
        localizer: MapLocalizer,
        vocabulary: Vocabulary | None = None,
        frame_encoder: FrameEncoder | None = None,
        text_encoder: TransformersTextEncoder | None = None,
        fps: float | None = None,
        clip_seconds: float | None = None,
        durations: Sequence[float] | None = None,
        text_features: TextFeatures | None = None,
    ) -> None:
        super().__init__()
        who = type(self).__name__
        if fps is not None:
            fps = check_range(who, "fps", fps, 0, MAX_FPS, open_low=True)
        if clip_seconds is not None:
            clip_seconds = check_range(who, "clip_seconds", clip_seconds, 0, open_low=True)
        if durations is not None:
            durations = summarize_durations(who, durations)
        if not isinstance(localizer.encoder, MultimodalEncoder | SimilarityEncoder):
            got, hint = type(localizer.encoder).__name__, "Call localizer.localize itself."
            raise ConfigError(message(who, "a localizer with a MultimodalEncoder", got, hint))
        encoder = localizer.encoder.config
        if text_features is not None:
            check_choice(who, "text_features", text_features, get_args(TextFeatures))
        if misfit := _misfit_of_text(encoder, vocabulary, text_encoder, text_features):
            raise ConfigError(message(who, *misfit))
        if frame_encoder is not None:
            if fps is None:
                raise ConfigError(message(who, "fps with a frame_encoder", "none"))
            if frame_encoder.feature_dim != encoder.clip_channels:
                expected = f"a frame_encoder that gives {encoder.clip_channels} numbers a picture"
                got = f"{frame_encoder.feature_dim} of {frame_encoder.description}"
                raise ConfigError(message(who, expected, got))
        self.register_modules(
            localizer=localizer,
            vocabulary=vocabulary,
            frame_encoder=frame_encoder,
            text_encoder=text_encoder,
        )
        self.register_to_config(
            fps=fps, clip_seconds=clip_seconds, durations=durations, text_features=text_features
        )
        self._videos: OrderedDict[tuple[Any, ...], VideoFeatures] = OrderedDict()
        self._lock = Lock()  # of the videos

    @classmethod
    def from_two_towers(
        cls, model: str | os.PathLike[str], *, fps: float = 2.0, **fields: Any
    ) -> Self:
        """Make a pipeline that is not trained: of a model that sees pictures and reads sentences.

        How alike frames and sentence are makes the map (`SimilarityLocalizer`): it finds what a
        single picture shows, and not what only movement, order or sound tells. Whole videos are
        searched; moments start and end on the 64ths of a video.

        Args:
            model: CLIP, SigLIP, or another model of transformers with `get_image_features` and
                `get_text_features`: its folder, or its name on the hub.
            fps: Pictures looked at in a second.
            **fields: Of `SimilarityLocalizer`, such as `ranking` or `num_clips`.

        Raises:
            TmapdiffError: As `TransformersFrameEncoder`, `TransformersTextEncoder` and
                `SimilarityLocalizer`.

        Example:
            >>> name = "google/siglip2-base-patch16-224"
            >>> pipe = MomentLocalizationPipeline.from_two_towers(name)  # doctest: +SKIP
            >>> found = pipe("holiday.mp4", "a dog runs into the sea")  # doctest: +SKIP
        """
        frames = TransformersFrameEncoder(model)
        return cls._untrained(TransformersTextEncoder(model), fps, fields, frames)

    @classmethod
    def from_text_encoder(
        cls, model: str | os.PathLike[str], *, fps: float = 1.0, **fields: Any
    ) -> Self:
        """Make a pipeline that is not trained, for text tracks: of a model that reads sentences.

        Its videos are subtitles and transcripts (`load_text_track`). How alike what is said and the
        sentence are makes the map, as for `from_two_towers`.

        Args:
            model: A sentence encoder of transformers, such as all-MiniLM-L6-v2: its folder, or its
                name on the hub.
            fps: Features a second (`encode_text_track`).
            **fields: Of `SimilarityLocalizer`, such as `ranking` or `num_clips`.

        Raises:
            TmapdiffError: As `TransformersTextEncoder` and `SimilarityLocalizer`.

        Example:
            >>> pipe = MomentLocalizationPipeline.from_text_encoder("minilm")  # doctest: +SKIP
            >>> found = pipe("talk.vtt", "where the budget is decided")  # doctest: +SKIP
        """
        return cls._untrained(TransformersTextEncoder(model), fps, fields)

    @classmethod
    def _untrained(
        cls,
        text_encoder: TransformersTextEncoder,
        fps: float,
        fields: Mapping[str, Any],
        frame_encoder: FrameEncoder | None = None,
    ) -> Self:
        fields = {"features_per_clip": _ROWS_PER_CLIP, **fields}
        localizer = SimilarityLocalizer(text_encoder.sentence_channels, **fields)
        return cls(
            localizer,
            frame_encoder=frame_encoder,
            text_encoder=text_encoder,
            fps=fps,
            text_features="sentence",
        )

    @property
    def scheduler(self) -> MapScheduler | None:
        """The model's scheduler, which is saved with it; None if the model does not sample.

        Can be set, as in diffusers: `pipe.scheduler = MapScheduler.from_config(
        pipe.scheduler.config, solver="unipc")`.

        Raises:
            ArgumentError: If it is set to no `MapScheduler`, or the model does not sample.
        """
        return getattr(self.localizer, "scheduler", None)

    @scheduler.setter
    def scheduler(self, scheduler: MapScheduler) -> None:
        if self.scheduler is None:
            kind = type(self.localizer).__name__
            expected = "a model that samples, for a scheduler"
            raise ArgumentError(message(type(self).__name__, expected, kind))
        self.localizer.scheduler = scheduler

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        *,
        push_to_hub: bool = False,
        **kwargs: Any,
    ) -> None:
        """Write model_index.json and a folder for each part, in place of an earlier save.

        A new folder appears whole or not at all. In one that exists, model_index.json and the files
        of all parts are replaced together, even those of parts that this pipeline lacks; any other
        file stays.

        Args:
            save_directory: Folder, made if need be.
            push_to_hub: Whether to upload it then, to the repository `repo_id`.
            **kwargs: `max_shard_size`, as for diffusers' `ModelMixin.save_pretrained`; or as for
                `push_to_hub`.

        Raises:
            FileError: If the place cannot be written; what was there is as before.
            ArgumentError: If weights are to be written where `from_pretrained` would not find them:
                as a `variant`, or in another form than safetensors.
        """
        who = type(self).__name__
        check_safe(who, kwargs)
        if kwargs.get("variant") is not None:
            raise ArgumentError(message(who, "no variant in a pipeline", repr(kwargs["variant"])))
        if push_to_hub:
            self.push_to_hub(kwargs.pop("repo_id", Path(save_directory).name), **kwargs)
            kwargs = {}
        folder = folder_to_save_in(who, save_directory)
        index: dict[str, Any] = {
            "_class_name": who,
            "_diffusers_version": diffusers_version,
            "_tmapdiff_version": __version__,
        }
        with written_beside(folder, replaces=PIPELINE_FILES) as new:
            new.mkdir()
            self.localizer.save_pretrained(new / "localizer", **kwargs)
            for name in ("frame_encoder", "text_encoder"):
                if getattr(self, name) is not None:
                    getattr(self, name).save_pretrained(new / name)
            if self.vocabulary is not None:
                self.vocabulary.save(new / "vocabulary" / VOCABULARY)
            for name in PARTS:
                part = getattr(self, name)
                index[name] = [None, None] if part is None else ["tmapdiff", type(part).__name__]
            index |= {name: self.config[name] for name in SETTINGS}
            (new / self.config_name).write_text(json.dumps(index, indent=2) + "\n")

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any
    ) -> Self:
        """Read a pipeline from a folder or the hub, in evaluation mode.

        Only classes of this library are made, whatever the folder says, and no code of it is run.

        Args:
            pretrained_model_name_or_path: Folder, or name on the hub.
            **kwargs: Parts to use in place of the folder's, such as `frame_encoder=None`; `fps`,
                `clip_seconds` and `durations`; `torch_dtype` of the model; and, from the hub, as
                for huggingface_hub's `snapshot_download`: `revision`, `token`, ...

        Raises:
            CheckpointError: If there is no such pipeline, it is damaged, or its parts do not fit
                each other.
            MissingDependencyError: If a part needs a package that is not installed.
        """
        given = {name: kwargs.pop(name) for name in (*PARTS, *SETTINGS) if name in kwargs}
        dtype = kwargs.pop("torch_dtype", None)
        place = f"{cls.__name__}: cannot load {pretrained_model_name_or_path}"
        folder = find_folder(place, pretrained_model_name_or_path, kwargs)
        index = read_index(place, folder / cls.config_name, cls.__name__)
        fields = {**{name: index.get(name) for name in SETTINGS}, **given}
        try:
            for name in PARTS:
                if name not in given:
                    fields[name] = load_part(place, folder, name, index.get(name))
            if fields["localizer"] is None:
                raise CheckpointError(f"{place}: it has no localizer.")
            pipeline = cls(**fields)
        except (CheckpointError, MissingDependencyError):
            raise
        except TmapdiffError as error:
            raise CheckpointError(f"{place}: {error}") from error
        if dtype is not None:
            pipeline.localizer.to(dtype=dtype)
        pipeline.register_to_config(_name_or_path=str(pretrained_model_name_or_path))
        return pipeline

    def encode_video(
        self, video: Video, *, frame_rate: float | None = None, batch_size: int = 32
    ) -> VideoFeatures:
        """Compute the features of a video once, for any number of calls.

        Those of the last few files are kept, and found again while the file stays as it is.

        Args:
            video: As in the call.
            frame_rate: Frames per second, of a `video` that is frames.
            batch_size: Frames at a time.

        Raises:
            ConfigError: If `video` is no features, and there is no `frame_encoder`.
            FeatureError: If features are not of the model's size, or not finite.
            ArgumentError, FileError, VideoError: As `open_video`.
            MissingDependencyError: If nothing that decodes videos is installed.
        """
        if isinstance(video, VideoFeatures):
            return self._checked(video)
        if isinstance(video, np.ndarray | Tensor) and video.ndim == 2:
            return self._checked(self._as_features(torch.as_tensor(video)))
        track, seen = _is_track(video), self.frame_encoder is not None
        if not (self.takes_text_tracks if track else seen):
            expected = "features of the video, as there is no frame_encoder"
            got = "a text track" if track else type(video).__name__
            hint = "Pass a VideoFeatures, or make the pipeline with frame_encoder and fps."
            if track and seen:
                expected = "a video or features"
                hint = "Text tracks are for pipelines of from_text_encoder (--text-encoder)."
            elif self.takes_text_tracks:
                expected = "a text track or features, as there is no frame_encoder"
                hint = "Videos are for pipelines of from_two_towers (--zero-shot)."
            raise ConfigError(message(type(self).__name__, expected, got, hint))
        key = _identity(video)
        with self._lock:
            if key is not None and key in self._videos:
                self._videos.move_to_end(key)
                return self._videos[key]
        if track:
            features = self._encode_track(video)
        else:
            options = {} if frame_rate is None else {"frame_rate": frame_rate}
            features = encode_video(
                video, self.frame_encoder, fps=self.config.fps, batch_size=batch_size, **options
            )
        self._checked(features)
        if key is not None:
            with self._lock:
                self._videos[key] = features
                while len(self._videos) > _KEPT_VIDEOS:
                    self._videos.popitem(last=False)
        return features

    @property
    def takes_text_tracks(self) -> bool:
        """Whether videos may be text tracks: the text encoder makes the features of both."""
        if self.frame_encoder is not None or self.text_encoder is None:
            return False
        channels: int = self.localizer.encoder.config.clip_channels
        return self.text_encoder.sentence_channels == channels

    def _encode_track(self, path: Any) -> VideoFeatures:
        cues = load_text_track(path)
        stride = 1 / (self.config.fps or 1.0)
        features = encode_text_track(cues, self.text_encoder, seconds_per_feature=stride)
        return VideoFeatures(features, stride, max(cue.end for cue in cues))

    def encode_queries(self, queries: Sequence[str]) -> list[Tensor]:
        """Encode sentences as the model reads them: with the vocabulary or the text encoder.

        An `UnknownWordsWarning` names words that the vocabulary lacks, which the model cannot tell
        apart.

        Shape:
            - returns: (L,) int64 each, of a vocabulary; (L, channels) float32, of a text encoder

        Raises:
            ArgumentError: If a query has no word, or none that the model knows, or `queries` is a
                single one.
            ConfigError: If the text encoder is of other channels.
            CheckpointError: If the text encoder turns out to be damaged.
        """
        who = type(self).__name__
        if isinstance(queries, str):
            raise ArgumentError(message(who, "a list of queries", repr(queries)))
        if self.text_encoder is None:
            check_known_words(who, self.vocabulary, queries)
            return [self.vocabulary.encode(one) for one in queries]
        encoder, chosen = self.localizer.encoder.config, self.config.text_features
        given = _channels_of_text(encoder, self.text_encoder, chosen)
        found = self.text_encoder(queries)
        for kind, channels in given.items():
            if channels != encoder.text_channels:
                continue
            if kind == "sentence":
                return list(found.sentences[:, None])
            lengths = found.num_tokens.tolist()
            # Copies: one long sentence would keep as much memory for each of the others.
            return [one[:length].clone() for one, length in zip(found.tokens, lengths, strict=True)]
        expected = f"a text_encoder of {encoder.text_channels} channels"
        raise ConfigError(message(who, expected, "another"))

    def unknown_words(self, query: str) -> list[str]:
        """Return the words of `query` that the model does not know; none with a text encoder.

        Raises:
            ArgumentError: If the query has no word.
        """
        return [] if self.vocabulary is None else self.vocabulary.unknown_words(query)

    @torch.no_grad()
    def __call__(
        self,
        video: Video | Sequence[Video],
        query: str | Sequence[str],
        *,
        pairs: Pairs | None = None,
        num_inference_steps: int | None = None,
        num_samples: int | None = None,
        top_n: int = 5,
        ranking: Ranking | None = None,
        nms_threshold: float | None = None,
        temperature: float | None = None,
        answer: AnswerKind = "ranked",
        eta: float | None = None,
        generator: Generators = None,
        frame_rate: float | None = None,
        batch_size: int = 16,
        output_type: OutputType = "moments",
        return_steps: bool = False,
        callback_on_step_end: _Callback | None = None,
        on_error: OnError = "raise",
        return_dict: bool = True,
    ) -> MomentLocalizationOutput | tuple[Any, ...]:
        """Find the moments that queries describe.

        Several threads may call one pipeline at a time, with any options: answers are those of one
        call after another. Give each a generator of its own; do not change weights, parts or modes
        meanwhile. A model in training mode answers as in evaluation mode, and stays in training.

        An `UnknownWordsWarning` names words that the model does not know. A video that is longer
        than those of training (`durations`) is searched in windows, which the output names.

        Args:
            video: A file; its content, as bytes or as an open binary file; frames, with
                `frame_rate`; features, as `encode_video` returns them or as a tensor at the
                pipeline's `fps`; or a text track (`load_text_track`), where the text encoder makes
                the features of videos, too. Or a list of such: one per query. Or a folder, whose
                videos are asked in the order of their names.
            query: A sentence, or several; a single one is asked of each video, a single video is
                searched for each sentence.
            pairs: What is asked of several videos: `product` asks every query of the first, then of
                the second, ..., and is what a folder gets by default; `zip` one of each. Defaults
                to one of each, or a single one of all.
            num_inference_steps: Denoising steps. Defaults to the model's number.
            num_samples: Samples of each query that are averaged, or from whose sets one is chosen.
                Defaults to the model's number.
            top_n: Moments per query, at most.
            ranking: How moments are read off the map, see `MapLocalizer.localize`. Defaults to the
                model's way.
            nms_threshold: Only for `nms` and sets, see `MapLocalizer.localize`.
            temperature: Not for `nms`, see `MapLocalizer.localize`.
            answer: `ranked` for the best moments, however well they fit; `set` for those that there
                seem to be, possibly none, with probabilities for scores, see
                `MapLocalizer.localize`. The output then has `present`: of a video that is searched
                in windows, what the maps say, whatever the model was fitted to tell.
            eta: 0, the default, is deterministic DDIM; 1 adds as much noise as DDPM.
            generator: Source of noise: one, or one per query, which makes answers independent of
                how queries are batched.
            frame_rate: Frames per second of videos that are frames.
            batch_size: Queries, or windows of their videos, at a time; videos may differ in length.
            output_type: `moments` for lists of `LocalizedMoment`; `pt` and `np` for one tensor or
                array of all.
            return_steps: Whether to return the map after every step.
            callback_on_step_end: Called after every step of every sample with the pipeline, the
                number of the step, its timestep and {"clean": ..., "noisy": ...}, the packed maps
                of a `DenoisingStep`; of windows, where videos are searched in windows.
            on_error: What to do about a video that cannot be read or whose scores are not finite,
                or a query that cannot be encoded: `raise` the error, or `skip` the query and answer
                the others; the output's `errors` then hold the error in its place.
            return_dict: Whether to return a `MomentLocalizationOutput` instead of a tuple.

        Shape:
            - video: (T, H, W, 3) uint8, RGB, for frames; (T, D) for features

        Raises:
            ArgumentError: If the numbers of queries and videos differ, a query has no word, or none
                that the model knows, an argument is out of range, a model that does not sample is
                asked to, or scores are not finite, as damaged weights make them.
            ConfigError: If there is no such output type, ranking, kind of answer or way of
                `on_error`.
            ShapeError: If there are not as many generators as queries.
            TmapdiffError: As `encode_video`.
        """
        who = type(self).__name__
        check_choice(who, "output_type", output_type, get_args(OutputType))
        check_choice(who, "on_error", on_error, get_args(OnError))
        check_int(who, "batch_size", batch_size, at_least=1)
        check_int(who, "top_n", top_n, at_least=1)
        if pairs is not None:
            check_choice(who, "pairs", pairs, get_args(Pairs))
        is_folder = isinstance(video, str | os.PathLike) and os.path.isdir(video)
        if is_folder:
            video = list_sources([video], text_tracks=self.takes_text_tracks)  # type: ignore[list-item]
            pairs = pairs or "product"
        videos, queries = _paired(who, video, query, pairs)
        check_generators(who, generator, len(queries))
        sampling = self._sampling(num_inference_steps, num_samples, eta, return_steps)
        reading: dict[str, Any] = {"top_n": top_n, "ranking": ranking}
        reading |= {"nms_threshold": nms_threshold, "temperature": temperature, "answer": answer}
        draw = partial(self._draw, sampling, return_steps, callback_on_step_end)
        skip = on_error == "skip"
        words = self._words(queries, skip)
        results: dict[int, Answer | TmapdiffError] = {}  # of each query
        clips: dict[Any, Clips | TmapdiffError] = {}  # of each video once
        last = {_key(one): row for row, one in enumerate(videos)}  # query of each video
        # One batch is over before a bar would be read.
        several = len(queries) > batch_size
        with self.progress_bar(total=len(queries)) if several else nullcontext() as bar:
            for start in range(0, len(queries), batch_size):
                rows = range(start, min(start + batch_size, len(queries)))
                for row in rows:
                    key = _key(videos[row])
                    if key not in clips and isinstance(words[row], Tensor):
                        clips[key] = _attempt(skip, self._clips, videos[row], frame_rate)
                    if error := _error_of(words[row], clips.get(key)):
                        results[row] = error
                good = [row for row in rows if row not in results]
                if good:
                    batch = Batch(
                        [clips[_key(videos[row])] for row in good],  # type: ignore[misc]
                        [words[row] for row in good],  # type: ignore[misc]
                        self.localizer,
                    )
                    drawn = self._draw_windows(draw, batch, _chosen(generator, good), batch_size)
                    read = self._read(batch, drawn, reading, skip)
                    results.update(zip(good, read, strict=True))
                clips = {key: one for key, one in clips.items() if last[key] >= rows.stop}
                if bar is not None:
                    bar.update(len(rows))
        found = [results[row] for row in range(len(queries))]
        answers = [None if isinstance(one, TmapdiffError) else one for one in found]
        output = _output(answers, top_n, output_type, return_steps)
        if answer == "set":
            output.present = [math.nan if one is None else one.present for one in answers]
        if pairs is not None:
            output.videos, output.queries = videos, queries
        if skip:
            output.errors = [_error_of(one) for one in found]
        return output if return_dict else output.to_tuple()

    def _words(self, queries: Sequence[str], skip: bool) -> Sequence[Tensor | TmapdiffError]:
        words = _attempt(skip, self.encode_queries, queries)
        if isinstance(words, TmapdiffError):  # of one of them, at least
            each = (_attempt(skip, self.encode_queries, [query]) for query in queries)
            words = [one if isinstance(one, TmapdiffError) else one[0] for one in each]
        return words

    def _sampling(
        self,
        num_inference_steps: int | None,
        num_samples: int | None,
        eta: float | None,
        return_steps: bool,
    ) -> dict[str, Any]:
        """Check how samples are to be drawn; return the arguments of `draw_samples`."""
        who, kind = type(self).__name__, type(self.localizer).__name__
        generative = self.localizer.is_generative
        given = {"num_inference_steps": num_inference_steps, "num_samples": num_samples}
        for name, value in given.items():
            if value is not None and check_int(who, name, value, at_least=1) > 1 and not generative:
                expected = f"one pass of a {kind} that does not sample"
                raise ArgumentError(message(who, expected, f"{name} = {value}"))
        if eta is not None:
            check_range(who, "eta", eta, 0, 1)
        if generative:
            chosen = {k: v for k, v in {**given, "eta": eta}.items() if v is not None}
            return {"num_samples": self.localizer.config.num_samples, **chosen}
        if eta or return_steps:
            expected = "a model that samples, for eta or return_steps"
            raise ArgumentError(message(who, expected, kind))
        return {}

    def _as_features(self, features: Tensor) -> VideoFeatures:
        fps = self.config.fps
        if fps is None:
            expected = "the fps of features that are a tensor"
            hint = "Pass a VideoFeatures, which says how long a feature lasts."
            raise ArgumentError(message(type(self).__name__, expected, "none", hint))
        return VideoFeatures(features, 1 / fps, len(features) / fps)

    def _checked(self, video: VideoFeatures) -> VideoFeatures:
        who, features = type(self).__name__, video.features
        channels = self.localizer.encoder.config.clip_channels
        if features.dim() != 2 or features.shape[1] != channels or not len(features):
            expected = f"features of shape (T, {channels}), T >= 1"
            raise FeatureError(message(who, expected, tuple(features.shape)))
        if not bool(features.isfinite().all()):
            where = int((~features.isfinite()).any(dim=1).nonzero()[0])
            raise FeatureError(message(who, "finite features", f"NaN or inf in row {where}"))
        return video

    def _clips(self, source: Video, frame_rate: float | None) -> Clips:
        video = self.encode_video(source, frame_rate=frame_rate)
        encoder, grid = self.localizer.encoder.config, self.localizer.grid
        seconds = self.config.clip_seconds
        duration = video.duration or len(video.features) * video.seconds_per_feature
        count = grid.num_clips
        if seconds is None:
            count = count_clips(duration, self.config.durations, grid)
        features = divide_video(
            video.features.float(),
            duration=duration,
            num_clips=count,
            clip_seconds=seconds,
            features_per_clip=encoder.features_per_clip,
            seconds_per_feature=video.seconds_per_feature,
        )
        # 1. clips of one length: as many as the video has
        if seconds is not None:
            count = len(features) // encoder.features_per_clip
            coarsest = grid.stride(grid.num_scales - 1)
            own = grid.resized(max(-(-count // coarsest) * coarsest, grid.num_clips))
            return Clips(features, duration, seconds, own, count)
        # 2. a video no longer than those of training: the model's clips
        if count == grid.num_clips:
            return Clips(features, duration, duration / count, grid, None)
        # 3. a longer one, of a model whose scores are of a whole video: each window would have an
        # answer that seems as likely
        if isinstance(self.localizer.encoder, SimilarityEncoder):
            return Clips(features, duration, duration / count, grid.resized(count), count)
        # 4. a longer one: windows
        windows = divide_in_windows(count, grid)
        return Clips(features, duration, duration / count, grid.resized(count), count, windows)

    def _draw_windows(
        self,
        draw: Callable[[Batch, Generators], Drawn],
        batch: Batch,
        generator: Generators,
        batch_size: int,
    ) -> Drawn:
        """Draw maps; where there are windows, `batch_size` of them at a time, and join them."""
        if not any(clips.windows for clips in batch.clips):
            return draw(batch, generator)
        queries, windows = zip(*batch.windows(), strict=True)
        generators: list[torch.Generator] | None = None
        if isinstance(generator, Sequence):
            counts = [len(clips.parts) for clips in batch.clips]
            own = [iter(some) for some in generators_of_windows(generator, counts)]
            generators = [next(own[query]) for query in queries]
        parts = []
        for start in range(0, len(windows), batch_size):
            place = slice(start, start + batch_size)
            sentences = [batch.sentences[query] for query in queries[place]]
            part = Batch(windows[place], sentences, self.localizer)
            parts.append(draw(part, generator if generators is None else generators[place]))
        return Drawn.join(parts, queries, batch)

    def _draw(
        self,
        sampling: Mapping[str, Any],
        return_steps: bool,
        callback: _Callback | None,
        batch: Batch,
        generator: Generators,
    ) -> Drawn:
        localizer, steps = self.localizer.evaluation_view(), Steps()

        def after_step(step: DenoisingStep) -> None:
            if return_steps:
                steps.add(step)
            if callback is not None:
                maps = {"clean": step.clean, "noisy": step.noisy}
                callback(self, step.index, step.timestep, maps)

        if localizer.is_generative:
            encoder = localizer.encoder
            maps = encoder.encode_video(batch.videos, batch.num_clips)
            sentences = encoder.encode_query(batch.words, batch.num_words)
            samples = localizer.draw_samples(
                encoder.fuse([batch.spread(one) for one in maps], sentences, batch.num_clips),
                num_clips=batch.num_clips,
                generator=list(generator) if isinstance(generator, Sequence) else generator,
                callback=after_step if return_steps or callback is not None else None,
                **sampling,
            )
        else:
            inputs = (batch.features, batch.words, batch.num_words, batch.num_clips)
            samples = localizer.predict_maps(*inputs)[:, None]
        return Drawn(samples, steps.clean(), steps.noisy())

    def _read(
        self, batch: Batch, drawn: Drawn, reading: Mapping[str, Any], skip: bool
    ) -> list[Answer | TmapdiffError]:
        """Read moments off maps; if errors are skipped, one in place of each that is not finite."""
        scores = drawn.samples

        def presence(rows: slice) -> Tensor | None:
            num_clips = None if batch.num_clips is None else batch.num_clips[rows]
            held = True if drawn.held is None else drawn.held[rows]
            maps = scores[rows].mean(dim=1).where(torch.as_tensor(held, device=scores.device), 0)
            asked = batch.features[rows], batch.words[rows], batch.num_words[rows]
            told = self.localizer.presence(*asked, maps, num_clips)
            in_windows = torch.tensor([bool(video.windows) for video in batch.clips[rows]])
            if told is None or not in_windows.any():
                return told
            # The maps of windows together are not as those that it was fitted on.
            target = self.localizer.objective.target
            own = map_presence(maps, batch.grid, num_clips, target=target).to(told)
            return own.where(in_windows.to(own.device), told)

        def read(rows: slice) -> Localization:
            num_clips = None if batch.num_clips is None else batch.num_clips[rows]
            held = None if drawn.held is None else drawn.held[rows]
            return self.localizer.read_moments(
                scores[rows],
                batch.clip_seconds[rows],
                grid=batch.grid,
                num_clips=num_clips,
                held=held,
                presence=presence(rows) if reading["answer"] == "set" else None,
                **reading,
            )

        errors: dict[int, TmapdiffError] = {}
        if skip:
            mask = batch.grid.packed_mask(scores.device, batch.num_clips)
            valid = mask if drawn.held is None else mask & drawn.held
            wrong = (~scores.isfinite().all(dim=1) & valid).any(dim=1)
            # Damaged weights are no fault of a video.
            if bool(wrong.any()) and not self.localizer.weights_not_finite():
                rows = wrong.nonzero().flatten().tolist()
                errors = {row: _attempt(skip, read, slice(row, row + 1)) for row in rows}
                scores = scores.masked_fill(wrong[:, None, None], 0)
        found = read(slice(None))
        answers = answers_of(found, spread_of(found, drawn.samples), batch, drawn)
        return [errors.get(row, answer) for row, answer in enumerate(answers)]


def _output(
    answers: Sequence[Answer | None], top_n: int, output_type: OutputType, return_steps: bool
) -> MomentLocalizationOutput:
    as_numpy = output_type == "np"
    moments: Any = [[] if one is None else one.moments for one in answers]
    if output_type != "moments":
        # Seconds in float32 might lie after the video's end.
        table = torch.full((len(answers), top_n, 4), torch.nan, dtype=torch.float64)
        for row, listed in enumerate(moments):
            for rank, one in enumerate(listed):
                spread = torch.nan if one.spread is None else one.spread
                numbers = [one.start, one.end, one.score, spread]
                table[row, rank] = torch.tensor(numbers, dtype=torch.float64)
        moments = table.numpy() if as_numpy else table
    videos = [None if one is None else one.clips for one in answers]
    windows = None
    if any(one.windows for one in videos if one is not None):
        windows = [[] if one is None else one.spans() for one in videos]

    def maps(name: str) -> MergedMaps:
        packed = [None if one is None else getattr(one, name) for one in answers]
        return MergedMaps(packed, as_numpy)

    return MomentLocalizationOutput(
        moments=moments,
        maps=maps("maps"),
        clip_seconds=[math.nan if one is None else one.clip_seconds for one in videos],
        durations=[math.nan if one is None else one.duration for one in videos],
        steps=maps("clean") if return_steps else None,
        noisy_steps=maps("noisy") if return_steps else None,
        windows=windows,
    )


def _attempt(skip: bool, function: Callable[..., Any], *arguments: Any) -> Any:
    """Return what a function returns or, where errors are skipped, its error."""
    try:
        return function(*arguments)
    except TmapdiffError as error:
        if not skip:
            raise
        return error.with_traceback(None)  # which would keep what was read


def _error_of(*results: Any) -> TmapdiffError | None:
    return next((one for one in results if isinstance(one, TmapdiffError)), None)


def _chosen(generator: Generators, rows: Sequence[int]) -> Generators:
    return [generator[row] for row in rows] if isinstance(generator, Sequence) else generator


def _paired(who: str, video: Any, query: Any, pairs: Pairs | None) -> tuple[list[Any], list[str]]:
    """Give one video for each query, and one query for each video."""
    if isinstance(query, str) or not isinstance(query, Iterable):
        query = [query]
    queries = list(query)
    for index, one in enumerate(queries):
        if not isinstance(one, str):
            got = f"{type(one).__name__} at {index}"
            raise ArgumentError(message(who, "query to be a sentence or a list of them", got))
    videos = list(video) if isinstance(video, list | tuple) else [video]
    for name, items in (("query", queries), ("video", videos)):
        check_int(who, f"the number of {name}", len(items), at_least=1)
    if pairs == "product":
        count = len(queries)
        return [one for one in videos for _ in range(count)], queries * len(videos)
    if pairs is None and len(videos) == 1:
        videos *= len(queries)
    elif pairs is None and len(queries) == 1:
        queries *= len(videos)
    if len(videos) != len(queries):
        expected = f"one video, or one for each of the {len(queries)} queries"
        raise ArgumentError(message(who, expected, f"{len(videos)} videos"))
    return videos, queries


def _is_track(video: Any) -> bool:
    is_path = isinstance(video, str | os.PathLike)
    return is_path and Path(video).suffix.lower() in TRACK_SUFFIXES


def _key(video: Any) -> Any:
    """Tell a video of a call from another."""
    return os.fspath(video) if isinstance(video, str | os.PathLike) else id(video)


def _identity(video: Any) -> tuple[Any, ...] | None:
    """Tell a file from others, and from itself after a change; None of what is no file."""
    if not isinstance(video, str | os.PathLike):
        return None
    try:
        status = os.stat(video)
    except (OSError, ValueError):  # whoever opens it will say so
        return None
    return (os.path.realpath(video), status.st_size, status.st_mtime_ns)


def _misfit_of_text(
    encoder: Any,
    vocabulary: Vocabulary | None,
    text_encoder: TransformersTextEncoder | None,
    text_features: TextFeatures | None,
) -> tuple[str, str] | None:
    """Return what the model needs to read sentences, and what came, where that does not fit."""
    channels, words = encoder.text_channels, encoder.vocabulary_size
    if channels is None:
        if text_encoder is not None or text_features is not None:
            expected = "no text_encoder, as the model reads words of a vocabulary"
            return expected, type(text_encoder).__name__ if text_encoder else "text_features"
        if not isinstance(vocabulary, Vocabulary):
            return "the vocabulary that the model was trained with", _kind(vocabulary)
        if len(vocabulary) != words:
            return f"a vocabulary of the model's {words} words", f"{len(vocabulary)} words"
        return None
    if not isinstance(text_encoder, TransformersTextEncoder):
        return "the text_encoder that the model was trained with", _kind(text_encoder)
    given = _channels_of_text(encoder, text_encoder, text_features)
    if channels not in given.values():
        got = " and ".join(f"{number} of {kind}" for kind, number in given.items())
        return f"a text_encoder that gives {channels} channels", got
    if getattr(encoder, "aligned", False) and [*given.values()].count(channels) > 1:
        # Of CLIP and SigLIP, only the sentences are in the space of the pictures.
        expected = "text_features, 'tokens' or 'sentence', whichever the model was trained with"
        return expected, f"none, and {channels} channels of both"
    if vocabulary is not None:
        return "no vocabulary, as the model reads features of a text_encoder", repr(vocabulary)
    return None


def _channels_of_text(
    encoder: Any, text_encoder: TransformersTextEncoder, chosen: TextFeatures | None
) -> dict[str, int]:
    """Channels of what may be given of a sentence; what fits first is."""
    given = {"tokens": text_encoder.token_channels, "sentence": text_encoder.sentence_channels}
    if chosen is None and not getattr(encoder, "words", True):
        chosen = "sentence"  # the mean of CLIP's tokens is none
    return given if chosen is None else {chosen: given[chosen]}


def _kind(part: object) -> str:
    return "none" if part is None else type(part).__name__
