"""Inference with exported graphs by onnxruntime and NumPy, without torch."""

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tmapdiff._core.checks import (
    check_choice,
    check_int,
    check_range,
    foreign_errors,
    message,
    require,
)
from tmapdiff.data._durations import covers
from tmapdiff.data.words import Vocabulary, check_known_words
from tmapdiff.errors import ArgumentError, CheckpointError, FeatureError

_FLOOR, _ITERATIONS, _THRESHOLDS, _WIDTH = 1e-6, 20, (0.5, 0.7), 0.05  # of expected hits

_RANKINGS = ("nms", "expected-hits", "nms-then-expected-hits")


class OnnxMoment(NamedTuple):
    """A moment, with start and end in seconds, and its score."""

    start: float
    end: float
    score: float


class OnnxLocalizer:
    """Finds moments with graphs that `export_pipeline` wrote with `format="onnx"`.

    It returns the same moments as the pipeline, from the same noise. It reads words of a
    vocabulary, but computes no features of frames or sentences.

    Args:
        folder: The folder of the export.
        threads: Threads of onnxruntime. Defaults to its own choice.

    Raises:
        CheckpointError: If the folder holds no ONNX export, or it is damaged.
        MissingDependencyError: If onnxruntime is not installed.

    Example:
        >>> localizer = OnnxLocalizer("exported")  # doctest: +SKIP
        >>> localizer(features, ["she cuts the onion"], duration=30.0)[0][0]  # doctest: +SKIP
        OnnxMoment(start=12.1, end=17.9, score=0.81)
    """

    def __init__(self, folder: str | os.PathLike[str], *, threads: int | None = None) -> None:
        runtime: Any = require("onnxruntime", extra="onnx", purpose="OnnxLocalizer")
        options = runtime.SessionOptions()
        if threads is not None:
            options.intra_op_num_threads = check_int(
                "OnnxLocalizer", "threads", threads, at_least=1
            )
        place, given = Path(folder), ["CPUExecutionProvider"]
        with foreign_errors(CheckpointError, f"OnnxLocalizer: cannot load {folder}"):
            self.info: dict[str, Any] = json.loads((place / "export.json").read_text("utf-8"))
            self._graphs = {
                name: runtime.InferenceSession(str(place / f"{name}.onnx"), options, given)
                for name in self.info["graphs"]
            }
            self._set_up_moments(**self.info["grid"])
        words = place / "vocabulary.json"
        self.vocabulary = Vocabulary.load(words) if words.exists() else None

    def _set_up_moments(self, num_clips: int, num_anchors: int, num_scales: int) -> None:
        """List the moments of the grid, sorted by start, then end, and the valid cells of each."""
        moments = []
        for scale in range(num_scales):
            start, length = np.indices((num_clips >> scale, num_anchors)).reshape(2, -1)
            moments.append(np.stack([start, start + length + 1], axis=1) << scale)
        cells = np.concatenate(moments)
        self._valid = np.flatnonzero(cells[:, 1] <= num_clips)
        self._num_cells = len(cells)
        self.moments, places = np.unique(cells[self._valid], axis=0, return_inverse=True)
        self._places = places.reshape(-1)

    def __call__(
        self,
        features: np.ndarray,
        queries: Sequence[str] | Sequence[np.ndarray],
        *,
        duration: float | None = None,
        seconds_per_feature: float | None = None,
        top_n: int = 5,
        ranking: str | None = None,
        seed: int = 0,
    ) -> list[list[OnnxMoment]]:
        """Find the moments of a video that queries describe.

        Args:
            features: Features of the video.
            queries: Sentences; or their features, if the model reads features.
            duration: Length of the video in seconds. Defaults to the length of the features at the
                pipeline's rate.
            seconds_per_feature: Seconds from one feature to the next. By default, features divide
                the video equally.
            top_n: Maximum number of moments per query.
            ranking: As for the pipeline. Defaults to the model's ranking.
            seed: Seed of the noise of each query, as for torch's generators.

        Shape:
            - features: (T, clip_channels)
            - queries: (L, text_channels) each, if they are features

        Returns:
            The moments of each query, best first.

        Raises:
            ConfigError: If the ranking is unknown.
            ArgumentError: If a sentence is too long or has no known word, or a number is out of
                range.
            FeatureError: If features do not have the model's channels or are not finite, or the
                video is longer than the exported model supports.
        """
        who = "OnnxLocalizer"
        check_int(who, "top_n", top_n, at_least=1)
        check_int(who, "seed", seed, at_least=0)
        ranking = self.info["ranking"] if ranking is None else ranking
        check_choice(who, "ranking", ranking, _RANKINGS)
        words, num_words = self._encode(queries)
        clips, count, seconds, duration = self._clips(features, duration, seconds_per_feature)
        batch = len(words)
        maps = self.predict_maps(
            np.repeat(clips[None], batch, axis=0), words, num_words, np.full(batch, count), seed
        )
        scores = np.full((batch, len(self.moments)), -np.inf, np.float32)
        np.maximum.at(scores.T, self._places, maps[:, self._valid].T)
        scores[:, self.moments[:, 1] > count] = -np.inf
        if not np.isfinite(scores[:, self.moments[:, 1] <= count]).all():
            raise ArgumentError(message(who, "finite scores", "NaN or infinity"))
        pick = self._pick_highest if ranking == "nms" else self._pick_hits
        return [
            [
                OnnxMoment(start * seconds, min(end * seconds, duration), score)
                for (start, end), score in pick(row, top_n, ranking != "expected-hits")
            ]
            for row in scores
        ]

    def predict_maps(
        self,
        features: np.ndarray,
        words: np.ndarray,
        num_words: np.ndarray,
        num_clips: np.ndarray,
        seed: int = 0,
    ) -> np.ndarray:
        """Predict the packed maps of all scales, as `MapLocalizer.predict_maps`.

        `features` must be padded to the grid's clips, and `words` to `max_words` of the export.
        `num_words` and `num_clips` are as there; `seed` is that of each query's noise.

        Shape:
            - features: (B, N, clip_channels)
            - words: (B, max_words), or (B, max_words, text_channels)
            - num_words, num_clips: (B,)
            - returns: (B, cells)
        """
        num_clips = num_clips.astype(np.int64)
        given = features.astype(np.float32), words, num_words.astype(np.int64), num_clips
        if "localizer" in self._graphs:
            return self._run("localizer", *given)[0]
        steps, batch = self.info["scheduler"], len(words)
        encoded = self._run("encoder", *given)
        random, samples = _TorchNormal(seed), []
        for _ in range(self.info["num_samples"]):
            noise = np.zeros(self._num_cells, np.float32)
            if not steps["deterministic"]:
                noise = random.draw(self._num_cells)
            noisy = np.repeat(noise[None], batch, axis=0)
            scaled = noisy * np.float32(steps["input_scale"])
            for timestep, row in zip(steps["timesteps"], steps["coefficients"], strict=True):
                to_clean, to_noisy, scale, signal = np.float32(row)
                times = np.full(batch, timestep)
                maps = self._run("decoder", scaled, times, num_clips, *encoded)[0]
                clean = (2 * maps - 1) * signal
                if steps["clip"]:
                    clean = clean.clip(-signal, signal)
                noisy = to_clean * clean + to_noisy * noisy
                scaled = noisy * scale
            samples.append(maps if steps["deterministic"] else (noisy / signal + 1) / 2)
        mean: np.ndarray = np.mean(samples, axis=0)
        return mean

    def _run(self, name: str, *inputs: np.ndarray) -> list[np.ndarray]:
        names = self.info["graphs"][name]["inputs"]
        found: list[np.ndarray] = self._graphs[name].run(
            None, dict(zip(names, inputs, strict=True))
        )
        return found

    def _encode(self, queries: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
        """Return words, padded to the graph's `max_words`, and their number."""
        who, most, channels = "OnnxLocalizer", self.info["max_words"], self.info["text_channels"]
        if isinstance(queries, str | np.ndarray) or not len(queries):
            raise ArgumentError(message(who, "a list of queries", type(queries).__name__))
        if channels is None and self.vocabulary is not None:
            check_known_words(who, self.vocabulary, queries)
            each = [np.array(self.vocabulary.indices(one)) for one in queries]
        else:
            each = [np.asarray(one, np.float32) for one in queries]
        shape = () if channels is None else (channels,)
        words = np.zeros((len(each), most, *shape), np.int64 if channels is None else np.float32)
        for row, one in enumerate(each):
            if one.shape[1:] != shape or one.ndim == 0 or not 1 <= len(one) <= most:
                expected = f"queries of shape {('1 to ' + str(most), *shape)}"
                hint = "For longer ones, export with more max_words."
                raise ArgumentError(message(who, expected, one.shape, hint))
            words[row, : len(one)] = one
        return words, np.array([len(one) for one in each])

    def _clips(
        self, features: np.ndarray, duration: float | None, stride: float | None
    ) -> tuple[np.ndarray, int, float, float]:
        """Pool features to clips as `divide_video` does; return them, their number and seconds."""
        who, info = "OnnxLocalizer", self.info
        rows = np.asarray(features, np.float32)
        if rows.ndim != 2 or rows.shape[1] != info["clip_channels"] or not len(rows):
            expected = f"features of shape (T, {info['clip_channels']}), T >= 1"
            raise FeatureError(message(who, expected, rows.shape))
        if not np.isfinite(rows).all():
            raise FeatureError(message(who, "finite features", "NaN or infinity"))
        if stride is None and duration is None and info["fps"]:
            stride = 1 / info["fps"]
        if stride is not None or duration is None:
            stride = check_range(who, "seconds_per_feature", stride, 0, open_low=True)
            duration = len(rows) * stride if duration is None else duration
        duration = check_range(who, "duration", duration, 0, open_low=True)
        most, each, seconds = info["grid"]["num_clips"], info["features_per_clip"], None
        count, longest = most, info["longest_seconds"]
        if info["clip_seconds"] is not None:
            seconds = info["clip_seconds"]
            count, longest = max(1, math.ceil(duration / seconds - 1e-6)), most * seconds
        if count > most or (longest is not None and duration > longest):
            hint = "Cut it into windows, or use the pipeline."
            raise FeatureError(message(who, f"a video of at most {longest:g} s", duration, hint))
        pooled = _pool(rows, count * each, duration, stride, seconds and seconds / each)
        filled = np.zeros((most * each, rows.shape[1]), np.float32)
        filled[: len(pooled)] = pooled
        return filled, count, seconds or duration / count, duration

    def _pick_highest(self, scores: np.ndarray, top_n: int, _: bool) -> list[tuple[Any, float]]:
        """Rank as `temporal_nms`."""
        left = scores.copy()
        picked: list[tuple[Any, float]] = []
        while len(picked) < top_n and (best := int(left.argmax())) >= 0 and left[best] > -np.inf:
            picked.append((self.moments[best].tolist(), float(scores[best])))
            overlap = _iou(self.moments, self.moments[best])
            left[overlap > self.info["nms_threshold"]] = -np.inf
            left[best] = -np.inf
        return picked

    def _pick_hits(
        self, scores: np.ndarray, top_n: int, highest_first: bool
    ) -> list[tuple[Any, float]]:
        """Rank as `rank_candidates_by_expected_hits`: deconvolve, then cover greedily."""
        moments = self.moments[valid := np.flatnonzero(scores > -np.inf)]
        scores = scores[valid].copy()
        best = int(scores.argmax())
        scores[best] = max(scores[best], _FLOOR)
        overlap = _iou(moments[:, None], moments).astype(np.float32)
        response = overlap
        if self.info["target"] == "rescaled":
            response = ((overlap - 0.5) / 0.5).clip(0, 1)
        observed, seen = scores.clip(min=0), response.sum(axis=0).clip(min=_FLOOR)
        likely = np.full(len(scores), 1 / len(scores), np.float32)
        for _ in range(_ITERATIONS):
            expected = (response @ likely).clip(min=_FLOOR)
            likely = likely * (response @ (observed / expected)) / seen
        likely /= max(likely.sum(), 1)
        steps = [1 / (1 + np.exp((threshold - overlap) / _WIDTH)) for threshold in _THRESHOLDS]
        hits, covered = np.mean(steps, axis=0), np.zeros_like(likely)
        picked: list[tuple[Any, float]] = []
        left = np.ones(len(scores), bool)
        while len(picked) < top_n and left.any():
            gains = np.where(left, (hits - covered).clip(min=0) @ likely, -np.inf)
            pick = best if highest_first and not picked else int(gains.argmax())
            gain = float(gains[pick])
            if highest_first and picked:
                gain = min(gain, picked[0][1])
            picked.append((moments[pick].tolist(), gain))
            covered, left[pick] = np.maximum(covered, hits[pick]), False
        return picked


def _iou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    overlap = np.minimum(first[..., 1], second[..., 1]) - np.maximum(first[..., 0], second[..., 0])
    overlap = overlap.clip(min=0)
    lengths = first[..., 1] - first[..., 0] + second[..., 1] - second[..., 0]
    result: np.ndarray = overlap / (lengths - overlap)
    return result


def _pool(
    rows: np.ndarray, clips: int, duration: float, stride: float | None, seconds: float | None
) -> np.ndarray:
    """Pool as `pool_features`: the mean of the rows with centers in a clip, or the nearest row."""
    if stride is None and seconds is None:
        stride, duration = 1.0, float(len(rows))
    stride = stride or duration / len(rows)
    end = duration if seconds is None else clips * seconds
    if not covers(len(rows), stride, duration):
        expected = f"features that cover the {duration:g} s of the video"
        raise FeatureError(message("OnnxLocalizer", expected, f"{len(rows) * stride:g} s"))
    centers = (np.arange(len(rows)) + 0.5) * stride
    clip = np.floor(centers * clips / end).clip(max=clips).astype(int)
    clip[centers == end] = clips - 1
    inside = clip < clips
    sums, counts = np.zeros((clips, rows.shape[1]), np.float32), np.zeros((clips, 1), np.float32)
    np.add.at(sums, clip[inside], rows[inside])
    np.add.at(counts, clip[inside], 1)
    middles = (np.arange(clips) + 0.5) * end / clips
    nearest = np.floor(middles / stride).clip(max=len(rows) - 1).astype(int)
    return np.where(counts > 0, sums / counts.clip(min=1), rows[nearest])


class _TorchNormal:
    """Normal numbers as torch draws them on a CPU with `Generator().manual_seed(seed)`."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.RandomState(seed % 2**32)
        self._left: list[float] = []

    def draw(self, count: int) -> np.ndarray:
        if count < 16:  # torch draws pairs in double, and keeps what is left for the next draw
            while len(self._left) < count:
                self._left += self._pair()
            drawn, self._left = self._left[:count], self._left[count:]
            return np.array(drawn, np.float32)
        whole = count // 16 * 16
        numbers, result = self._uniform(count), np.zeros(count, np.float32)
        result[:whole] = self._of_pairs(numbers[:whole])
        if count % 16:
            result[-16:] = self._of_pairs(self._uniform(16))
        return result

    def _pair(self) -> list[float]:
        bits = self._random.randint(0, 2**32, size=4, dtype=np.uint64).tolist()
        angle, share = ((high << 32 | low) % 2**53 / 2**53 for high, low in (bits[:2], bits[2:]))
        radius, angle = math.sqrt(-2 * math.log1p(-share)), 2 * math.pi * angle
        return [radius * math.cos(angle), radius * math.sin(angle)]

    def _uniform(self, count: int) -> np.ndarray:
        whole = self._random.randint(0, 2**32, size=count, dtype=np.uint64)
        return (whole & 0xFFFFFF).astype(np.float32) / np.float32(2**24)

    @staticmethod
    def _of_pairs(numbers: np.ndarray) -> np.ndarray:
        first, second = np.moveaxis(numbers.reshape(-1, 2, 8), 1, 0)
        radius, angle = np.sqrt(-2 * np.log(1 - first)), np.float32(2 * np.pi) * second
        return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).reshape(-1)
