"""Localizing many queries in many videos with Ray Data, from input tables to Parquet files."""

import hashlib
import json
import logging
import os
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tmapdiff._core.checks import (
    check_int,
    first_line,
    foreign_errors,
    message,
    require,
    shown,
)
from tmapdiff._core.digests import add_file, add_tensors
from tmapdiff._core.files import is_hidden, written_beside
from tmapdiff._core.limits import TEXT_GROWTH, check_item_bytes
from tmapdiff.data import ConcatFeatureStore, FeatureStore, Vocabulary, open_feature_store
from tmapdiff.data._reading import field, json_lines, json_or_none
from tmapdiff.data._spelling import find_spelling
from tmapdiff.data._video_ids import by_id, check_video_id
from tmapdiff.data.words import check_known_words
from tmapdiff.errors import (
    ArgumentError,
    ConfigError,
    FileError,
    TmapdiffError,
    UnknownWordsWarning,
)
from tmapdiff.models import Ranking
from tmapdiff.models.map_localizer import check_sampling
from tmapdiff.pipelines import MomentLocalizationPipeline
from tmapdiff.pipelines._saving import VOCABULARY
from tmapdiff.spinning import brief_spin
from tmapdiff.video import VideoFeatures
from tmapdiff.video.extraction import find_videos, size_and_time
from tmapdiff.video.frame_encoder import other_encoder

MANIFEST = "_corpus.json"  # readers of Parquet folders skip files that start with an underscore
_STATES = b"tmapdiff_states"  # metadata of an output file: `_state` of each video
_COLUMNS = ("video_id", "query_id", "query", "moments")
_ROWS_AT_ONCE = 4096
_BYTES_OF_VALUE = 64  # of a Python number or empty string
_KINDS = {  # types of the values of a column
    "video_id": (str, int),
    "query_id": (str, int),
    "query": (str,),
    "path": (str,),
    "duration": (int, float),
}
_Asked = Mapping[str | None, Sequence[tuple[str, str]]]
_PURPOSE = {"extra": "ray", "purpose": "localize_corpus"}


@dataclass(frozen=True)
class CorpusOptions:
    """How the moments of a corpus are found. None means the model's setting.

    Attributes:
        num_inference_steps: Denoising steps.
        num_samples: Number of samples per query, which are averaged.
        ranking: How moments are read off the maps.
        top_n: Largest number of moments per query.
        seed: Seed of the noise, which depends only on it and on the ids of query and video.

    Raises:
        ArgumentError: If a number is out of range.
        ConfigError: If there is no such ranking.
    """

    num_inference_steps: int | None = None
    num_samples: int | None = None
    ranking: Ranking | None = None
    top_n: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        check_int("CorpusOptions", "top_n", self.top_n, at_least=1)
        check_sampling("CorpusOptions", **vars(self))


@dataclass(frozen=True)
class FailedVideo:
    """The `video_id` of a video that could not be localized, and the `error` in one line."""

    video_id: str
    error: str


@dataclass(frozen=True)
class CorpusReport:
    """Result of a run over a corpus.

    Attributes:
        videos: Videos localized by this run.
        pairs: Queries in these videos.
        done_before: Videos localized by earlier runs.
        failed: Videos that could not be localized; the next run retries them.
        in_windows: Videos of this run that were longer than training videos and searched in
            windows.
        spelling: How the features spell the ids, if it differs, such as `with '.avi'`.
        seconds: Wall time.
    """

    videos: int
    pairs: int
    done_before: int
    failed: tuple[FailedVideo, ...]
    seconds: float
    in_windows: int = 0
    spelling: str = ""

    def __str__(self) -> str:
        windows = f" ({self.in_windows} in windows)" if self.in_windows else ""
        failed = f", {len(self.failed)} failed" if self.failed else ""
        before = f", {self.done_before} were done before" if self.done_before else ""
        videos = f"{self.videos} videos{windows}"
        named = f"; the features name them {self.spelling}" if self.spelling else ""
        return f"{self.pairs} queries in {videos}, {self.seconds:.1f} s{before}{failed}{named}"


def localize_corpus(
    pipeline: str | os.PathLike[str],
    videos: str | os.PathLike[str],
    queries: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    features: Sequence[str | os.PathLike[str]] = (),
    options: CorpusOptions | None = None,
    num_workers: int = 2,
    gpus_per_worker: float = 0.0,
    threads_per_worker: int = 1,
    device: torch.device | str | None = None,
    videos_per_file: int = 16,
    batch_size: int = 64,
    on_file: Callable[[int, int], None] | None = None,
) -> CorpusReport:
    """Find the moments of all queries in a corpus of videos.

    Results are Parquet files in `output`: one row per video and query, with columns `video_id`,
    `query_id`, `query` and `moments`, a list of start and end in seconds, score and spread, best
    first. All queries of a video are in one file, which appears when it is complete. The same call
    resumes a killed run, and processes videos that are new, or changed in file, features or
    duration.

    Args:
        pipeline: Folder of a saved `MomentLocalizationPipeline` that all workers can read.
        videos: A folder of videos, whose ids are their names without suffix; or a table with
            columns `video_id` and `path`, a file, or, with `features`, `video_id` and `duration`,
            in seconds. Tables are Parquet files, folders of such, or JSON lines (`.jsonl`).
        queries: Table with columns `query_id` and `query`. With a column `video_id`, each query is
            for that video; without, for all videos.
        output: Output folder.
        features: Feature stores of the videos, as for `open_feature_store`. Their ids may differ by
            a suffix such as `.avi` or the prefix `v_`, which the report names.
        options: How moments are found. Defaults to the model's settings.
        num_workers: Ray actors, each with a copy of the model; 0 runs in this process, without Ray.
        gpus_per_worker: GPUs per actor; fractions share a GPU.
        threads_per_worker: CPU threads per actor.
        device: Device of each worker. Defaults to a GPU if there is one.
        videos_per_file: Videos per output file.
        batch_size: Queries per batch.
        on_file: Called after each file with the number of finished videos and the total.

    Raises:
        MissingDependencyError: If Ray or pyarrow is not installed.
        FileError: If a table cannot be read or (`SizeLimitError`) takes too much memory, or
            `output` cannot be written.
        AnnotationError: If JSON lines are invalid, or a table lacks a column.
        ArgumentError: If a table lacks a value, has one of the wrong type, or repeats an id; if a
            query is for an unknown video or has no word that the model knows; or if a number is
            out of range.
        ConfigError: If `output` belongs to another pipeline, other queries or options.
        CheckpointError: If the pipeline cannot be loaded.
    """
    who = "localize_corpus"
    require("pyarrow", **_PURPOSE)
    check_int(who, "num_workers", num_workers, at_least=0)
    for name, count in (
        ("threads_per_worker", threads_per_worker),
        ("videos_per_file", videos_per_file),
        ("batch_size", batch_size),
    ):
        check_int(who, name, count, at_least=1)
    began = time.perf_counter()
    options, folder = options or CorpusOptions(), Path(output)
    # 1. Queries of each video.
    by_video = _read_queries(queries)
    listed = _read_videos(videos, "duration" if features else "path")
    unknown = [one for one in by_video if one is not None and one not in listed]
    if unknown:
        got = f"queries for {len(unknown)} others, such as {unknown[0]!r}"
        raise ArgumentError(message(who, "queries for the given videos", got))
    for_all = by_video.get(None)
    asked = {one: for_all or by_video.get(one, ()) for one in listed}
    _check_words(Path(pipeline), by_video)
    # 2. Features, and finished videos.
    stores = [os.fspath(place) for place in features]
    store = _open_stores(stores)
    ids = [] if store is None else list(listed)
    spelling, names = find_spelling(ids, store or ())
    _check_manifest(folder, pipeline, by_video, stores, options)

    def is_current(video_id: str, state: Any) -> bool:
        if video_id not in listed or state is None:
            return True
        return _state(store, names.get(video_id, video_id), listed[video_id]) in (None, state)

    before = set(_videos_done(folder, is_current))
    todo = [(one, source) for one, source in listed.items() if one not in before and asked[one]]
    # 3. Remaining videos, in shares of one output file each.
    starts = range(0, len(todo), videos_per_file)
    shares = [todo[first : first + videos_per_file] for first in starts]
    settings = {
        "pipeline": os.fspath(pipeline),
        "features": stores,
        "names": names if spelling else {},
        "queries": asked,
        "options": options,
        "output": folder,
        "batch_size": batch_size,
        "threads": threads_per_worker,
        "device": None if device is None else str(device),
    }
    done = pairs = in_windows = 0
    failed: list[FailedVideo] = []
    told: set[str] = set()
    for result in _run(settings, shares, num_workers, gpus_per_worker):
        done, pairs = done + result["videos"], pairs + result["pairs"]
        in_windows += result["in_windows"]
        failed += [FailedVideo(*pair) for pair in json.loads(result["failed"])]
        # Each worker repeats its own with each of its shares.
        new = set(json.loads(result["told"])) - told
        told |= new
        for text in sorted(new):
            warnings.warn(text, stacklevel=2)
        if on_file is not None:
            on_file(done + len(failed), len(todo))
    return CorpusReport(
        videos=done,
        pairs=pairs,
        done_before=len(before & listed.keys()),
        failed=tuple(failed),
        seconds=time.perf_counter() - began,
        in_windows=in_windows,
        spelling=spelling,
    )


def _run(
    settings: Mapping[str, Any], shares: Sequence[Any], num_workers: int, gpus_per_worker: float
) -> Iterator[Mapping[str, Any]]:
    # As text, as Ray's rows cannot hold pairs of mixed types.
    rows = [{"share": json.dumps(share)} for share in shares]
    if num_workers == 0:
        yield from map(_ShareLocalizer(**settings), rows)
        return
    if not rows:
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no telemetry
    ray: Any = require("ray", **_PURPOSE)
    data: Any = require("ray.data", **_PURPOSE)
    if not ray.is_initialized():
        here = {} if "RAY_ADDRESS" in os.environ else {"num_cpus": num_workers}
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR, **here)
    data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    results = data.from_items(rows, override_num_blocks=len(rows)).map(
        _ShareLocalizer,
        fn_constructor_kwargs=settings,
        compute=data.ActorPoolStrategy(size=min(num_workers, len(rows))),
        num_cpus=1,
        num_gpus=gpus_per_worker,
        runtime_env={"env_vars": brief_spin()},
    )
    yield from results.iter_rows()


@dataclass
class _ShareLocalizer:
    """A worker, which localizes the queries of a share of the videos and writes them to a file."""

    pipeline: Any
    features: Sequence[str]
    names: Mapping[str, str]  # ids in the features, if they are spelled differently
    queries: Mapping[str, Sequence[tuple[str, str]]]  # ids and sentences, by video
    options: CorpusOptions
    output: Path
    batch_size: int
    threads: int
    device: str | None

    def __post_init__(self) -> None:
        torch.set_num_threads(self.threads)
        self.pipeline = MomentLocalizationPipeline.from_pretrained(self.pipeline)
        self.pipeline.set_progress_bar_config(disable=True)
        self.pipeline.to(self.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.store = _open_stores(self.features)
        # Texts of warnings, as Ray does not show those of workers.
        self.told = {other_encoder(self.pipeline.frame_encoder, self.store)} - {""}

    def __call__(self, row: Mapping[str, str]) -> dict[str, Any]:
        rows: list[dict[str, Any]] = []
        in_windows = 0
        failed: list[tuple[str, str]] = []
        states: dict[str, Any] = {}
        for video_id, source in json.loads(row["share"]):
            queries = self.queries[video_id]
            try:
                state = _state(self.store, self.names.get(video_id, video_id), source)
                answer = self._localize(video_id, source, queries)
            except TmapdiffError as error:
                failed.append((video_id, str(error)))
                continue
            states[video_id] = state
            in_windows += answer.windows is not None
            for query, moments in zip(queries, answer.moments, strict=True):
                values = (video_id, *query, [vars(moment) for moment in moments])
                rows.append(dict(zip(_COLUMNS, values, strict=True)))
        if states:
            # Named after the whole share, so that a repeated share replaces its file.
            name = hashlib.sha256(row["share"].encode()).hexdigest()[:20]
            _write(self.output / f"part-{name}.parquet", rows, states)
        return {
            "videos": len(states),
            "pairs": len(rows),
            "failed": json.dumps(failed),
            "in_windows": in_windows,
            "told": json.dumps(sorted(self.told)),
        }

    def _localize(self, video_id: str, source: Any, queries: Sequence[tuple[str, str]]) -> Any:
        """Localize all queries of a video; `source` is its file or its duration."""
        check_video_id("localize_corpus", video_id)
        options = dict(vars(self.options))
        seed = options.pop("seed")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            warnings.simplefilter("ignore", UnknownWordsWarning)  # `_check_words` warned
            found = self.pipeline(
                self._features(video_id, source),
                [sentence for _, sentence in queries],
                generator=[_generator(seed, video_id, one) for one, _ in queries],
                batch_size=self.batch_size,
                **options,
            )
        self.told |= {str(one.message) for one in caught if issubclass(one.category, UserWarning)}
        return found

    def _features(self, video_id: str, source: Any) -> VideoFeatures:
        if self.store is None:
            return self.pipeline.encode_video(source)
        features = self.store[self.names.get(video_id, video_id)]
        rate = self.store.seconds_per_feature
        return VideoFeatures(features, rate or source / len(features), source)


def _open_stores(places: Sequence[str]) -> FeatureStore | None:
    stores = [open_feature_store(place) for place in places]
    return ConcatFeatureStore(stores) if len(stores) > 1 else next(iter(stores), None)


def _state(store: FeatureStore | None, name: str, source: Any) -> Any:
    """Identify the version of a video or of its features; None if they cannot be read."""
    try:
        if store is None:
            return list(size_and_time(Path(source)))
        digest = hashlib.sha256()
        add_tensors(digest, [(f"{source} ", store[name])])
        return digest.hexdigest()
    except (TmapdiffError, ValueError):
        return None


def _generator(seed: int, *ids: str) -> torch.Generator:
    digest = hashlib.sha256(json.dumps([seed, *ids]).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


# Tables


def _write(path: Path, rows: list[dict[str, Any]], states: Mapping[str, Any]) -> None:
    import pyarrow as pa

    numbers = {"start": pa.float64(), "end": pa.float64(), "score": pa.float32()}
    moments = pa.list_(pa.struct({**numbers, "spread": pa.float32()}))
    columns = dict(zip(_COLUMNS, (pa.string(), pa.string(), pa.string(), moments), strict=True))
    schema = pa.schema(columns, {_STATES: json.dumps(states).encode()})
    _write_table(path, pa.Table.from_pylist(rows, schema=schema))


def _write_table(path: Path, table: Any) -> None:
    import pyarrow.parquet as pq

    with written_beside(path) as new:
        pq.write_table(table, new, write_page_checksum=True)


def _videos_done(output: Path, is_current: Callable[[str, Any], bool]) -> Iterator[str]:
    """Yield the videos in the output files of a folder; remove the rows of changed ones."""
    import pyarrow.parquet as pq

    for path in sorted(output.glob("part-*.parquet")):
        try:
            # All columns, so that the checksums of all pages are checked.
            table = pq.read_table(path, page_checksum_verification=True)
            states = json.loads((table.schema.metadata or {}).get(_STATES, b"{}"))
            ids = table["video_id"].unique().to_pylist()
        # On damaged files pyarrow raises errors of many types.
        except Exception as error:
            expected = "an intact file of a corpus run"
            hint = "Remove it to localize its videos again."
            raise FileError(message(str(path), expected, first_line(error), hint)) from error
        current = {one for one in ids if is_current(one, states.get(one))}
        if not current:
            path.unlink()
        elif len(current) < len(ids):
            _write_table(
                path, table.filter([one in current for one in table["video_id"].to_pylist()])
            )
        yield from current


def _read_table(place: str | os.PathLike[str], columns: Sequence[str]) -> dict[str, list[Any]]:
    """Read columns of a table, and the column `video_id` if it exists."""
    path = Path(place)
    found: dict[str, list[Any]] = {name: [] for name in (*columns, "video_id")}
    rows = _parquet_rows(path, set(found))
    if path.suffix.lower() == ".jsonl":
        rows = ((who, record) for _, who, record in json_lines(path))
    taken = 0
    for who, row in rows:
        for name, values in found.items():
            if name not in columns and name not in row:
                continue
            value = field(who, row, name)
            if isinstance(value, bool) or not isinstance(value, _KINDS[name]):
                expected = f"{name} as {' or '.join(kind.__name__ for kind in _KINDS[name])}"
                raise ArgumentError(message(who, expected, shown(value)))
            values.append(value)
            taken += _BYTES_OF_VALUE + len(str(value)) * TEXT_GROWTH
        check_item_bytes(str(path), "a table", taken)
    with_video, count = len(found["video_id"]), len(found[columns[0]])
    if with_video not in (0, count):
        expected = "a video_id in every row, or in none"
        raise ArgumentError(message(str(path), expected, f"{with_video} in {count} rows"))
    return found


def _parquet_rows(path: Path, columns: set[str]) -> Iterator[tuple[str, Any]]:
    import pyarrow.dataset as ds
    import pyarrow.parquet as pq

    if not path.exists():
        raise FileError(f"cannot read {path}: no such file or folder.")
    row = 0
    with foreign_errors(FileError, f"cannot read {path}"):
        if not (files := ds.dataset(path, format="parquet").files):
            raise ArgumentError(message(str(path), "Parquet files", "an empty folder"))
        for file in files:
            with pq.ParquetFile(file) as table:
                names = [name for name in table.schema_arrow.names if name in columns]
                if len(set(names)) < len(names):
                    raise ArgumentError(message(str(path), "each column once", ", ".join(names)))
                declared = table.metadata.num_rows * len(names) * _BYTES_OF_VALUE
                check_item_bytes(str(path), "a table", declared)
                for index in range(table.num_row_groups):
                    # Of all columns: reading one column's size from a damaged file can crash.
                    size = table.metadata.row_group(index).total_byte_size
                    check_item_bytes(str(path), "a group of rows", size)
                # Compressed, a billion rows may be a few bytes.
                for batch in table.iter_batches(_ROWS_AT_ONCE, columns=names):
                    check_item_bytes(str(path), "a table", batch.nbytes * TEXT_GROWTH)
                    for values in batch.to_pylist():
                        row += 1
                        yield f"{path} row {row}", values


def _read_queries(place: str | os.PathLike[str]) -> _Asked:
    """Read ids and sentences of queries, by video id, or None for queries for all videos."""
    table = _read_table(place, ("query_id", "query"))
    ids = [str(one) for one in table["query_id"]]
    videos: list[Any] = [str(one) for one in table["video_id"]] or [None] * len(ids)
    _check_unique(place, "query_id", list(zip(videos, ids, strict=True)))
    by_video: dict[str | None, list[tuple[str, str]]] = defaultdict(list)
    for video_id, query_id, query in zip(videos, ids, table["query"], strict=True):
        by_video[video_id].append((query_id, str(query)))
    return dict(by_video)


def _read_videos(place: str | os.PathLike[str], source: str) -> dict[str, Any]:
    """Read the `path` or `duration` of each video, by id."""
    if source == "path" and os.path.isdir(place) and (files := find_videos(Path(place))[0]):
        found = by_id("localize_corpus", files)
        return {one: str(path) for one, path in sorted(found.items())}
    table = _read_table(place, ("video_id", source))
    ids = [str(one) for one in table["video_id"]]
    _check_unique(place, "video_id", ids)
    return dict(sorted(zip(ids, table[source], strict=True)))


def _check_unique(place: Any, name: str, ids: Sequence[Any]) -> None:
    again = [one for one, count in Counter(ids).items() if count > 1]
    if again:
        raise ArgumentError(message(os.fspath(place), f"each {name} once", f"{again[0]!r} again"))


def _check_words(pipeline: Path, queries: _Asked) -> None:
    path = pipeline / "vocabulary" / VOCABULARY
    if path.is_file():  # without it, a text encoder reads all words
        sentences = {sentence: None for listed in queries.values() for _, sentence in listed}
        check_known_words("localize_corpus", Vocabulary.load(path), sentences)


def _check_manifest(
    output: Path,
    pipeline: str | os.PathLike[str],
    queries: _Asked,
    features: Sequence[str],
    options: CorpusOptions,
) -> None:
    """Record what the results in a folder depend on, or compare it with an existing record."""
    asked = json.dumps(sorted(queries.items(), key=str))
    wanted = {
        "pipeline": _digest_of(Path(pipeline)),
        "queries": hashlib.sha256(asked.encode()).hexdigest(),
        "features": list(features),
        "options": vars(options),
    }
    path = output / MANIFEST
    if not path.exists():
        with written_beside(path) as new:
            new.write_text(json.dumps(wanted, indent=2) + "\n")
        return
    written = json_or_none(path)
    for name, value in wanted.items():
        if not isinstance(written, dict) or written.get(name) != value:
            expected = f"{output} to belong to a run with the same {name}"
            hint = "Use another output folder."
            raise ConfigError(message("localize_corpus", expected, "a different one", hint))


def _digest_of(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(one for one in folder.rglob("*") if one.is_file()):
        place = path.relative_to(folder)
        if any(map(is_hidden, place.parts)):
            continue
        digest.update(str(place).encode())
        add_file(digest, path)
    return digest.hexdigest()
