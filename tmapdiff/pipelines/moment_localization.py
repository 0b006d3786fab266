"""The pipeline from a video and a sentence to moments."""

import json
import math
import os
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
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
from tmapdiff.layers._modules import weights_version
from tmapdiff.maps.saliency import map_presence
from tmapdiff.models import (
    AnswerKind,
    DenoisingStep,
    MapLocalizer,
    MultimodalEncoder,
    Ranking,
    SimilarityEncoder,
    SimilarityLocalizer,
    TransformersTextEncoder,
)
from tmapdiff.models._base import check_safe
from tmapdiff.models.map_localizer import Generators, check_generators
from tmapdiff.pipelines._batches import Answer, Batch, Clips, Drawn, answers_of
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
_LOCK = threading.Lock()  # of the cached videos; not an attribute, as it cannot be copied
_ROWS_PER_CLIP = 4  # so that similarity is smoothed over less than two clips


class MomentLocalizationPipeline(DiffusionPipeline):
    """Finds the moments of videos that sentences describe.

    It is saved, loaded and moved like other pipelines of diffusers.

    Args:
        localizer: The trained model.
        vocabulary: Vocabulary of the model; None with a `text_encoder`.
        frame_encoder: Encodes frames into features. Without it, videos must be features.
        text_encoder: Encodes sentences, for a model whose words are features.
        fps: Features per second, as in training; required with a `frame_encoder`.
        clip_seconds: Seconds per clip, as in training. By default, the model's clips divide each
            video equally.
        text_features: Features of a sentence from `text_encoder`: its `tokens`, or the whole
            `sentence` as one word. Defaults to `sentence` for a `SimilarityLocalizer` that compares
            no words, otherwise to what matches the model's channels, first `tokens`. Required if
            both match a model with `aligned`.
        durations: Lengths in seconds of the training videos, or their minimum, median and maximum,
            which are stored. Without `clip_seconds`, a longer video is searched in overlapping
            windows as long as the median; by a `SimilarityLocalizer`, it is searched as a whole,
            with clips as long as those of such windows. By default, all videos have the same number
            of clips.

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
            got, hint = type(localizer.encoder).__name__, "Call localizer.localize directly."
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
                expected = f"a frame_encoder with {encoder.clip_channels} numbers per frame"
                got = f"{frame_encoder.feature_dim} from {frame_encoder.description}"
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

    @classmethod
    def from_two_towers(
        cls, model: str | os.PathLike[str], *, fps: float = 2.0, **fields: Any
    ) -> Self:
        """Build a pipeline without training, from a model of images and sentences.

        The map is computed from the similarity of frames and sentence (`SimilarityLocalizer`). It
        finds what a single frame shows, and not what only movement, order or sound shows. Moments
        start and end at multiples of 1/64 of the video.

        Args:
            model: Folder, or name on the hub, of CLIP, SigLIP, or another transformers model with
                `get_image_features` and `get_text_features`.
            fps: Frames per second to encode.
            **fields: Fields of `SimilarityLocalizer`, such as `ranking` or `num_clips`.

        Raises:
            TmapdiffError: As `TransformersFrameEncoder` and `from_text_encoder`.

        Example:
            >>> name = "google/siglip2-base-patch16-224"
            >>> pipe = MomentLocalizationPipeline.from_two_towers(name)  # doctest: +SKIP
            >>> found = pipe("holiday.mp4", "a dog runs into the sea")  # doctest: +SKIP
        """
        frames = TransformersFrameEncoder(model)
        return cls.from_text_encoder(model, fps=fps, frame_encoder=frames, **fields)

    @classmethod
    def from_text_encoder(
        cls,
        model: str | os.PathLike[str],
        *,
        fps: float = 1.0,
        frame_encoder: FrameEncoder | None = None,
        **fields: Any,
    ) -> Self:
        """Build a pipeline for text tracks without training, from a sentence encoder.

        Its videos are subtitles and transcripts (`load_text_track`), whose similarity to the
        sentence gives the map, as for `from_two_towers`.

        Args:
            model: Folder, or name on the hub, of a transformers sentence encoder, such as
                sentence-transformers/all-MiniLM-L6-v2.
            fps: Features per second (`encode_text_track`).
            frame_encoder: An encoder into the same space, to search videos instead.
            **fields: Fields of `SimilarityLocalizer`, such as `ranking` or `num_clips`.

        Raises:
            TmapdiffError: As `TransformersTextEncoder` and `SimilarityLocalizer`.
            ArgumentError: If `words` is True.

        Example:
            >>> pipe = MomentLocalizationPipeline.from_text_encoder("minilm")  # doctest: +SKIP
            >>> found = pipe("talk.vtt", "where the budget is decided")  # doctest: +SKIP
        """
        if fields.get("words"):
            expected = "no words, as sentences are compared as a whole"
            raise ArgumentError(message(cls.__name__, expected, "words=True"))
        text_encoder = TransformersTextEncoder(model)
        fields = {"features_per_clip": _ROWS_PER_CLIP, **fields}
        return cls(
            SimilarityLocalizer(text_encoder.sentence_channels, **fields),
            frame_encoder=frame_encoder,
            text_encoder=text_encoder,
            fps=fps,
            text_features="sentence",
        )

    @property
    def scheduler(self) -> MapScheduler | None:
        """The model's scheduler, which is saved with it; None if the model is not generative.

        It can be set, as in diffusers: `pipe.scheduler = MapScheduler.from_config(
        pipe.scheduler.config, solver="unipc")`.
        """
        return getattr(self.localizer, "scheduler", None)

    @scheduler.setter
    def scheduler(self, scheduler: MapScheduler) -> None:
        if self.scheduler is None:
            kind = type(self.localizer).__name__
            expected = "a generative model to set a scheduler"
            raise ArgumentError(message(type(self).__name__, expected, kind))
        self.localizer.scheduler = scheduler

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        *,
        push_to_hub: bool = False,
        **kwargs: Any,
    ) -> None:
        """Save model_index.json and a folder for each part, replacing an earlier pipeline.

        Saving is atomic: a new folder appears whole or not at all, and in an existing one all files
        of an earlier pipeline are replaced together. Other files stay.

        Args:
            save_directory: Folder, created if needed.
            push_to_hub: Whether to upload it afterwards, to the repository `repo_id`.
            **kwargs: `max_shard_size`, as for diffusers' `ModelMixin.save_pretrained`; or as for
                `push_to_hub`.

        Raises:
            FileError: If the folder cannot be written; it is then left as it was.
            ArgumentError: If a `variant` or another format than safetensors is requested, which
                `from_pretrained` would not find.
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
        """Load a pipeline from a folder or the hub, in evaluation mode.

        The folder may be untrusted: only classes of this library are used, and no code from the
        folder is run.

        Args:
            pretrained_model_name_or_path: Folder, or name on the hub.
            **kwargs: Parts to use instead of the folder's, such as `frame_encoder=None`; `fps`,
                `clip_seconds` and `durations`; `torch_dtype` of the model; and, for the hub,
                arguments of huggingface_hub's `snapshot_download`: `revision`, `token`, ...

        Raises:
            CheckpointError: If the pipeline does not exist or is damaged, or its parts do not fit
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

        The features of the last few files are cached until file, encoder or `fps` change. A damaged
        video causes a warning.

        Args:
            video: As for the call.
            frame_rate: Frames per second, if `video` is frames.
            batch_size: Frames per batch.

        Raises:
            ConfigError: If `video` is not features, and there is no `frame_encoder`.
            FeatureError: If features do not have the model's channels, or are not finite.
            ArgumentError, FileError, VideoError: As `open_video`; if `frame_rate` is given for
                anything but frames.
            MissingDependencyError: If no video decoder is installed.
        """
        who = type(self).__name__
        if frame_rate is not None and not _is_frames(video):
            raise ArgumentError(message(who, "frame_rate only for frames", frame_rate))
        if isinstance(video, VideoFeatures):
            return self._checked(video)
        if isinstance(video, np.ndarray | Tensor) and video.ndim == 2:
            if self.config.fps is None:
                expected = "the pipeline's fps for features that are a tensor"
                hint = "Pass a VideoFeatures, which has the length of a feature."
                raise ArgumentError(message(who, expected, "none", hint))
            stride = 1 / self.config.fps
            return self._checked(VideoFeatures(torch.as_tensor(video), stride, len(video) * stride))
        track = False
        if isinstance(video, str | os.PathLike):
            track = Path(video).suffix.lower() in TRACK_SUFFIXES
        if not (self.takes_text_tracks if track else self.frame_encoder is not None):
            got = "a text track" if track else type(video).__name__
            hint = "For videos, pass frame_encoder and fps (train --frame-encoder), or use "
            hint += "from_two_towers (--zero-shot); "
            hint += "for text tracks, use from_text_encoder (--text-encoder)."
            raise ConfigError(message(who, "features of the video", got, hint))
        key = _identity(video)
        if key is not None:
            encoder = self.text_encoder if track else self.frame_encoder
            key = (*key, encoder, weights_version(encoder), self.config.fps)
        with _LOCK:
            if key is not None and key in self._videos:
                self._videos.move_to_end(key)
                return _copied(self._videos[key])
        if track:
            features = self._encode_track(video)
        else:
            options = {} if frame_rate is None else {"frame_rate": frame_rate}
            features = encode_video(
                video, self.frame_encoder, fps=self.config.fps, batch_size=batch_size, **options
            )
        self._checked(features)
        if features.damage:
            name = video if isinstance(video, str | os.PathLike) else "the video"
            warnings.warn(f"{name}: part of it is damaged: {features.damage}", stacklevel=2)
        if key is not None:
            with _LOCK:
                self._videos[key] = _copied(features)
                while len(self._videos) > _KEPT_VIDEOS:
                    self._videos.popitem(last=False)
        return features

    @property
    def takes_text_tracks(self) -> bool:
        """Whether videos may be text tracks, which the text encoder encodes like queries."""
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
        """Encode sentences for the model, with the vocabulary or the text encoder.

        An `UnknownWordsWarning` lists words outside the vocabulary, which the model cannot
        distinguish.

        Shape:
            - returns: (L,) int64 each, with a vocabulary; (L, channels) float32, with a text
              encoder

        Raises:
            ArgumentError: If a query has no word that the model knows, or `queries` is a string.
            CheckpointError: If the text encoder is damaged.
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
        if given.get("tokens") != encoder.text_channels:
            return list(found.sentences[:, None])
        lengths = found.num_tokens.tolist()
        # Copies, as views would keep the memory of sentences padded to the longest.
        return [one[:length].clone() for one, length in zip(found.tokens, lengths, strict=True)]

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
        hit_thresholds: Sequence[float] | None = None,
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

        Several threads may call a pipeline concurrently, with any options, and get the answers of
        sequential calls. Pass each its own generator, and do not change weights, parts or modes
        meanwhile. A model in training mode answers as in evaluation mode, and stays in training.

        An `UnknownWordsWarning` lists words that the model does not know. A video that is longer
        than the training videos (`durations`) is searched in windows, which the output lists.

        Args:
            video: A file; its content, as bytes or as an open binary file; frames, with
                `frame_rate`; features, from `encode_video` or as a tensor at the pipeline's `fps`;
                or, if `takes_text_tracks`, a text track (`load_text_track`). A list has one per
                query. A folder stands for its videos, sorted by name.
            query: A sentence, or several.
            pairs: `product` pairs every query with the first video, then with the second, ...; it
                is the default for a folder. `zip` pairs one query with one video. Otherwise, the
                default is to zip, repeating a single query or a single video.
            num_inference_steps: Denoising steps. Defaults to the model's number.
            num_samples: Samples per query, which are averaged, or from whose sets one is chosen.
                Defaults to the model's number.
            top_n: Maximum number of moments per query.
            ranking: As for `MapLocalizer.localize`. Defaults to the model's ranking.
            nms_threshold: As for `MapLocalizer.localize`.
            temperature: As for `MapLocalizer.localize`.
            hit_thresholds: As for `MapLocalizer.localize`.
            answer: As for `MapLocalizer.localize`. With `set`, the output has `presence`, which
                comes from the maps alone if a video is searched in windows.
            eta: 0, the default, is deterministic DDIM; 1 adds as much noise as DDPM.
            generator: Source of noise: one, or one per query, which makes answers independent of
                batching.
            frame_rate: Frames per second, for videos that are frames.
            batch_size: Queries, or windows of their videos, per batch; videos may differ in length.
            output_type: `moments` for lists of `LocalizedMoment`; `pt` or `np` for one tensor or
                array of all.
            return_steps: Whether to return the map after each step.
            callback_on_step_end: Called after each step of each sample with the pipeline, the index
                of the step, its timestep and {"clean": ..., "noisy": ...}, the packed maps of a
                `DenoisingStep`; in windows, those of the windows.
            on_error: If a video cannot be read or a query cannot be encoded, `raise` raises the
                error. `skip` answers the other queries and stores the error in the output's
                `errors`.
            return_dict: Whether to return a `MomentLocalizationOutput` instead of a tuple.

        Shape:
            - video: (T, H, W, 3) uint8, RGB, for frames; (T, D) for features

        Raises:
            ArgumentError: If the numbers of queries and videos differ, a query has no word that the
                model knows, or as `MapLocalizer.localize`.
            ConfigError: If the output type, ranking, kind of answer or `on_error` is unknown.
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
        steps = {"return_steps": return_steps, "callback_on_step_end": callback_on_step_end}
        sampling = self._sampling(
            steps, num_inference_steps=num_inference_steps, num_samples=num_samples, eta=eta
        )
        reading: dict[str, Any] = {"top_n": top_n, "ranking": ranking}
        reading |= {"nms_threshold": nms_threshold, "temperature": temperature}
        reading |= {"hit_thresholds": hit_thresholds, "answer": answer}
        draw = partial(self._draw, sampling, return_steps, callback_on_step_end)
        skip = on_error == "skip"
        words = self._words(queries, skip)
        results: dict[int, Answer] = {}  # by query
        clips: dict[Any, Clips | TmapdiffError] = {}  # by video
        last = {_key(one): row for row, one in enumerate(videos)}  # last query of each video
        any_frames = any(map(_is_frames, videos))
        # A single batch needs no progress bar.
        several = len(queries) > batch_size
        with self.progress_bar(total=len(queries)) if several else nullcontext() as bar:
            for start in range(0, len(queries), batch_size):
                rows = range(start, min(start + batch_size, len(queries)))
                for row in rows:
                    key = _key(videos[row])
                    if key not in clips and isinstance(words[row], Tensor):
                        rate = None if any_frames and not _is_frames(videos[row]) else frame_rate
                        clips[key] = _attempt(skip, self._clips, videos[row], rate)
                    if error := _error_of(words[row], clips.get(key)):
                        results[row] = Answer(error=error)
                good = [row for row in rows if row not in results]
                if good:
                    batch = Batch(
                        [clips[_key(videos[row])] for row in good],  # type: ignore[misc]
                        [words[row] for row in good],  # type: ignore[misc]
                        self.localizer,
                    )
                    own = generator
                    if isinstance(generator, Sequence):
                        own = [generator[row] for row in good]
                    drawn = self._draw_windows(draw, batch, own, batch_size)
                    read = self._read(batch, drawn, reading)
                    results.update(zip(good, read, strict=True))
                clips = {key: one for key, one in clips.items() if last[key] >= rows.stop}
                if bar is not None:
                    bar.update(len(rows))
        answers = [results[row] for row in range(len(queries))]
        # In the constructor: diffusers' outputs leave fields that are set later out of tuples.
        output = _output(
            answers,
            top_n,
            output_type,
            return_steps,
            errors=[one.error for one in answers] if skip else None,
            videos=None if pairs is None else videos,
            queries=None if pairs is None else queries,
            presence=[one.presence for one in answers] if answer == "set" else None,
        )
        return output if return_dict else output.to_tuple()

    def _words(self, queries: Sequence[str], skip: bool) -> Sequence[Tensor | TmapdiffError]:
        words = _attempt(skip, self.encode_queries, queries)
        if isinstance(words, TmapdiffError):  # at least one query is wrong
            each = (_attempt(skip, self.encode_queries, [query]) for query in queries)
            words = [one if isinstance(one, TmapdiffError) else one[0] for one in each]
        return words

    def _sampling(self, steps: Mapping[str, Any], **given: Any) -> dict[str, Any]:
        """Check the sampling options; return the arguments of `draw_samples`."""
        who, kind = type(self).__name__, type(self.localizer).__name__
        chosen = {name: value for name, value in given.items() if value is not None}
        for name, value in chosen.items():
            if name == "eta":
                check_range(who, name, value, 0, 1)
            else:
                check_int(who, name, value, at_least=1)
        if self.localizer.is_generative:
            return {"num_samples": self.localizer.config.num_samples, **chosen}
        one_pass = {"num_inference_steps": 1, "num_samples": 1, "eta": 0}
        changed = [name for name, value in chosen.items() if value != one_pass[name]]
        if changed := [*changed, *(name for name, value in steps.items() if value)]:
            expected = f"a generative model for {', '.join(changed)}"
            raise ArgumentError(message(who, expected, kind))
        return {}

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
        # 1. fixed clip_seconds: the number of clips depends on the video
        if seconds is not None:
            count = len(features) // encoder.features_per_clip
            coarsest = grid.stride(grid.num_scales - 1)
            own = grid.resized(max(-(-count // coarsest) * coarsest, grid.num_clips))
            return Clips(features, duration, seconds, own, count)
        # 2. not longer than the training videos: the model's number of clips
        if count == grid.num_clips:
            return Clips(features, duration, duration / count, grid, None)
        # 3. longer, with a model that normalizes scores over a video: search it as a whole, as each
        # window would have an equally likely answer
        if isinstance(self.localizer.encoder, SimilarityEncoder):
            return Clips(features, duration, duration / count, grid.resized(count), count)
        # 4. longer: windows
        windows = divide_in_windows(count, grid)
        return Clips(features, duration, duration / count, grid.resized(count), count, windows)

    def _draw_windows(
        self,
        draw: Callable[[Batch, Generators], Drawn],
        batch: Batch,
        generator: Generators,
        batch_size: int,
    ) -> Drawn:
        """Draw maps; draw those of windows in batches of `batch_size` and join them."""
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
        localizer = self.localizer.evaluation_view()
        if not localizer.is_generative:
            inputs = (batch.features, batch.words, batch.num_words, batch.num_clips)
            return Drawn(localizer.predict_maps(*inputs)[:, None])
        # After each step: the sum of the clean maps of all samples, the noisy map of the first.
        clean: list[Tensor] = []
        noisy: list[Tensor] = []

        def after_step(step: DenoisingStep) -> None:
            if return_steps and step.index == len(clean):
                clean.append(step.clean)
                noisy.append(step.noisy)
            elif return_steps:
                clean[step.index] = clean[step.index] + step.clean
            if callback is not None:
                maps = {"clean": step.clean, "noisy": step.noisy}
                callback(self, step.index, step.timestep, maps)

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
        if not return_steps:
            return Drawn(samples)
        mean = torch.stack(clean, dim=1) / samples.shape[1]
        return Drawn(samples, mean.float().cpu(), torch.stack(noisy, dim=1).float().cpu())

    def _read(self, batch: Batch, drawn: Drawn, reading: Mapping[str, Any]) -> Iterator[Answer]:
        presence = self._presence(batch, drawn) if reading["answer"] == "set" else None
        found = self.localizer.read_moments(
            drawn.samples,
            batch.clip_seconds,
            grid=batch.grid,
            num_clips=batch.num_clips,
            held=drawn.held,
            presence=presence,
            **reading,
        )
        return answers_of(found, batch, drawn)

    def _presence(self, batch: Batch, drawn: Drawn) -> Tensor | None:
        maps = drawn.samples.mean(dim=1)
        if drawn.held is not None:
            maps = maps.where(drawn.held, 0)
        asked = batch.features, batch.words, batch.num_words
        fitted = self.localizer.presence(*asked, maps, batch.num_clips)
        in_windows = torch.tensor([bool(video.windows) for video in batch.clips])
        if fitted is None or not in_windows.any():
            return fitted
        # Presence weights were not fitted on maps joined from windows.
        target = self.localizer.objective.target
        own = map_presence(maps, batch.grid, batch.num_clips, target=target).to(fitted)
        return own.where(in_windows.to(own.device), fitted)


def _output(
    answers: Sequence[Answer],
    top_n: int,
    output_type: OutputType,
    return_steps: bool,
    **further: Any,
) -> MomentLocalizationOutput:
    as_numpy = output_type == "np"
    moments: Any = [one.moments for one in answers]
    if output_type != "moments":
        # Seconds in float32 might lie after the video's end.
        table = torch.full((len(answers), top_n, 4), torch.nan, dtype=torch.float64)
        for row, listed in enumerate(moments):
            for rank, one in enumerate(listed):
                spread = torch.nan if one.spread is None else one.spread
                numbers = [one.start, one.end, one.score, spread]
                table[row, rank] = torch.tensor(numbers, dtype=torch.float64)
        moments = table.numpy() if as_numpy else table
    videos = [one.clips for one in answers]
    windows = None
    if any(one.windows for one in videos if one is not None):
        windows = [[] if one is None else one.spans() for one in videos]

    def maps(name: str) -> MergedMaps:
        return MergedMaps([getattr(one, name) for one in answers], as_numpy)

    return MomentLocalizationOutput(
        moments=moments,
        maps=maps("maps"),
        clip_seconds=[math.nan if one is None else one.clip_seconds for one in videos],
        durations=[math.nan if one is None else one.duration for one in videos],
        steps=maps("clean") if return_steps else None,
        noisy_steps=maps("noisy") if return_steps else None,
        windows=windows,
        **further,
    )


def _attempt(skip: bool, function: Callable[..., Any], *arguments: Any) -> Any:
    """Return the function's result or, with `skip`, its error."""
    try:
        return function(*arguments)
    except TmapdiffError as error:
        if not skip:
            raise
        return error.with_traceback(None)  # the traceback would keep the video in memory


def _error_of(*results: Any) -> TmapdiffError | None:
    return next((one for one in results if isinstance(one, TmapdiffError)), None)


def _paired(who: str, video: Any, query: Any, pairs: Pairs | None) -> tuple[list[Any], list[str]]:
    """Return lists of as many videos as queries, one pair per answer."""
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


def _key(video: Any) -> Any:
    """Return a key that identifies a video within a call."""
    return os.fspath(video) if isinstance(video, str | os.PathLike) else id(video)


def _is_frames(video: Any) -> bool:
    return isinstance(video, np.ndarray | Tensor) and video.ndim != 2


def _identity(video: Any) -> tuple[Any, ...] | None:
    """Return the identity of a file and its version; None if it is not a file."""
    if not isinstance(video, str | os.PathLike):
        return None
    try:
        status = os.stat(video)
    except (OSError, ValueError):  # opening it will raise an error
        return None
    changed = (status.st_mtime_ns, status.st_ctime_ns)  # the former can be set at will
    return (os.path.realpath(video), status.st_ino, status.st_size, *changed)


def _copied(video: VideoFeatures) -> VideoFeatures:
    """Copy features, as callers may change what they get."""
    return replace(video, features=video.features.clone())


def _misfit_of_text(
    encoder: Any,
    vocabulary: Vocabulary | None,
    text_encoder: TransformersTextEncoder | None,
    text_features: TextFeatures | None,
) -> tuple[str, str] | None:
    """Return what the model expects for sentences and what it got, or None if they match."""
    channels, words = encoder.text_channels, encoder.vocabulary_size
    got = " and ".join(type(one).__name__ for one in (vocabulary, text_encoder) if one is not None)
    if channels is None:
        known = len(vocabulary) if isinstance(vocabulary, Vocabulary) else None
        if known == words and text_encoder is None and text_features is None:
            return None
        expected = f"a vocabulary with the model's {words} words, and nothing else for sentences"
        return expected, got or "none" if known is None else f"{got} with {known} words"
    if not isinstance(text_encoder, TransformersTextEncoder) or vocabulary is not None:
        return "only the text_encoder that the model was trained with", got or "none"
    given = _channels_of_text(encoder, text_encoder, text_features)
    if channels not in given.values():
        got = " and ".join(f"{number} of {kind}" for kind, number in given.items())
        return f"a text_encoder with {channels} channels", got
    if getattr(encoder, "aligned", False) and [*given.values()].count(channels) > 1:
        # In CLIP and SigLIP, only sentences share the space of the images.
        expected = "text_features 'tokens' or 'sentence', as in training"
        return expected, f"none, and both have {channels} channels"
    return None


def _channels_of_text(
    encoder: Any, text_encoder: TransformersTextEncoder, chosen: TextFeatures | None
) -> dict[str, int]:
    """Return the channels of the possible text features; the first that matches is used."""
    given = {"tokens": text_encoder.token_channels, "sentence": text_encoder.sentence_channels}
    if chosen is None and not getattr(encoder, "words", True):
        chosen = "sentence"  # the mean of CLIP's tokens is not in its shared space
    return given if chosen is None else {chosen: given[chosen]}
