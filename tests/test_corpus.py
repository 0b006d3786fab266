"""Corpus runs with random weights, on a shared local Ray with two workers."""

import gc
import json
import os
import shutil
import signal
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.assertions import refuses
from helpers.corpora import CHANNELS, QUERIES, RATE, make_corpus, write
from helpers.datasets import write_lines
from helpers.pipelines import make_localizer, make_pictures, make_pipe, write_video

from tmapdiff import FrameEncoder, MomentLocalizationPipeline
from tmapdiff.data import Annotation
from tmapdiff.errors import (
    AnnotationError,
    ArgumentError,
    ConfigError,
    FileError,
    SizeLimitError,
    UnknownWordsWarning,
)
from tmapdiff.video import VideoFeatures

pytest.importorskip("pyarrow", reason="pyarrow comes with the extra ray")
pq = pytest.importorskip("pyarrow.parquet")

from tmapdiff.corpus import CorpusOptions, _generator, localize_corpus  # noqa: E402


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("corpus"), 12)


def run(corpus, output, **options):
    options = {"num_workers": 0, "videos_per_file": 2, "features": [corpus / "features"], **options}
    tables = [options.pop(name, corpus / f"{name}.parquet") for name in ("videos", "queries")]
    pipeline = options.pop("pipeline", corpus / "pipeline")
    return localize_corpus(pipeline, *tables, output, **options)


def rows_of(output):
    """Rows by video and query; fails on duplicates."""
    found = {}
    for path in sorted(output.glob("*.parquet")):
        for row in pq.read_table(path).to_pylist():
            key = row["video_id"], row["query_id"]
            assert key not in found
            found[key] = row
    return found


@pytest.fixture(scope="module")
def whole(corpus, tmp_path_factory):
    """The output of an uninterrupted run."""
    output = tmp_path_factory.mktemp("whole")
    run(corpus, output)
    return output


@pytest.fixture(scope="module")
def expected(whole):
    return rows_of(whole)


@pytest.fixture
def finished(whole, tmp_path):
    return Path(shutil.copytree(whole, tmp_path / "out"))


def test_features_whose_ids_are_spelled_otherwise_are_found(corpus, tmp_path, expected):
    for path in (corpus / "features").iterdir():
        spelled = path.name if path.suffix == ".json" else f"v_{path.stem}.avi{path.suffix}"
        (tmp_path / "features").mkdir(exist_ok=True)
        (tmp_path / "features" / spelled).write_bytes(path.read_bytes())
    report = run(corpus, tmp_path / "out", features=[tmp_path / "features"])
    assert report.failed == ()
    assert str(report).endswith("; the features name them with 'v_' and with '.avi'")
    assert rows_of(tmp_path / "out") == expected


def test_a_gpu_is_taken_unless_told_otherwise(corpus, tmp_path, monkeypatch):
    places = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(MomentLocalizationPipeline, "to", lambda _, place: places.append(place))
    one = write(tmp_path / "one", video_id=["video00"], duration=[10.0])
    run(corpus, tmp_path / "auto", videos=one)
    run(corpus, tmp_path / "cpu", videos=one, device="cpu")
    assert places == ["cuda", "cpu"]


def test_unknown_words_are_told_once_and_queries_of_them_alone_refused(corpus, tmp_path):
    queries = write(tmp_path / "q.parquet", query_id=[1, 2], query=["the perro", "a door ladra"])
    text = "these words of the queries: perro, ladra"
    with pytest.warns(UnknownWordsWarning, match=text) as told:
        report = run(corpus, tmp_path / "out", queries=queries)
    assert (len(told), report.failed) == (1, ())
    write(queries, query_id=[1, 2], query=["a door", "el perro ladra"])
    hint = "It knows 5 words, such as a, person, opens, the, door."
    expected = "localize_corpus: expected queries with a word that the model knows, got"
    with refuses(ArgumentError, f"{expected} 'el perro ladra'. {hint}"):
        run(corpus, tmp_path / "none", queries=queries)
    assert not (tmp_path / "none").exists()


def test_videos_longer_than_those_of_training_are_counted(corpus, tmp_path):
    pipeline = MomentLocalizationPipeline.from_pretrained(corpus / "pipeline", durations=[12.0])
    pipeline.save_pretrained(tmp_path / "pipeline")
    report = run(corpus, tmp_path / "out", pipeline=tmp_path / "pipeline")
    # 10 to 15.5 s; up to 3 % more than in training counts as the same length.
    assert (report.videos, report.in_windows) == (12, 4)
    assert "12 videos (4 in windows)" in str(report)


def assert_alike(found, expected):
    assert found.keys() == expected.keys()
    for key, row in expected.items():
        assert found[key]["query"] == row["query"]
        for one, other in zip(found[key]["moments"], row["moments"], strict=True):
            assert one == pytest.approx(other, rel=1e-4)


def assert_row(row, pipe, video):
    """A pipeline gives the same moments: a query's noise does not depend on the others."""
    generator = _generator(0, row["video_id"], row["query_id"])
    found = pipe(video, row["query"], generator=[generator]).moments[0]
    for moment, other in zip(found, row["moments"], strict=True):
        assert vars(moment) == pytest.approx(other, rel=1e-4)


@pytest.fixture(scope="module")
def _ray():
    ray = pytest.importorskip("ray", reason="the extra ray is not installed")
    yield
    with warnings.catch_warnings():
        # Old releases do not wait for processes to end.
        warnings.simplefilter("ignore", ResourceWarning)
        ray.shutdown()
        gc.collect()


def uses_ray(test):
    """Mark a test that needs Ray, which warns about its own settings."""
    for kind in ("DeprecationWarning", "FutureWarning", "ResourceWarning"):
        test = pytest.mark.filterwarnings(f"ignore::{kind}")(test)
    return pytest.mark.process(pytest.mark.usefixtures("_ray")(test))


def test_rows_are_what_the_pipeline_answers(corpus, expected):
    assert len(expected) == 12 * len(QUERIES)
    pipe = MomentLocalizationPipeline.from_pretrained(corpus / "pipeline")
    features = torch.from_numpy(np.load(corpus / "features" / "video03.npy"))
    video = VideoFeatures(features, RATE, len(features) * RATE)
    row = expected["video03", "8"]
    assert row["query"] == "the door"
    assert_row(row, pipe, video)


def test_options_are_the_calls(corpus, tmp_path, expected):
    options = CorpusOptions(num_inference_steps=3, num_samples=1, top_n=2, seed=1)
    run(corpus, tmp_path, options=options)
    for key, row in rows_of(tmp_path).items():
        assert len(row["moments"]) == 2
        assert row["moments"][0]["spread"] is None
        assert row["moments"] != expected[key]["moments"][:2]


def test_a_second_run_does_what_is_missing_and_what_was_added(corpus, tmp_path, expected):
    first = run(corpus, tmp_path)
    assert (first.videos, first.pairs, first.done_before) == (12, 36, 0)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.parquet")}
    assert len(times) == 6
    lost = sorted(times)[:2]
    for path in lost:
        path.unlink()
    again = run(corpus, tmp_path)
    assert (again.videos, again.pairs, again.done_before) == (4, 12, 8)
    assert "12 queries in 4 videos" in str(again)
    assert "8 were done before" in str(again)
    for path, written in times.items():
        assert (path.stat().st_mtime_ns == written) == (path not in lost)
    assert_alike(rows_of(tmp_path), expected)
    assert run(corpus, tmp_path).pairs == 0

    np.save(corpus / "features" / "added.npy", np.ones((9, CHANNELS), np.float32))
    table = pq.read_table(corpus / "videos.parquet").to_pylist()
    table += [{"video_id": "added", "duration": 4.5}]
    longer = write_lines(tmp_path / "longer.jsonl", table)
    assert run(corpus, tmp_path, videos=longer).pairs == 3
    assert rows_of(tmp_path).keys() == {*expected, *(("added", str(one)) for one in (7, 8, 9))}


def test_videos_that_changed_are_localized_again(corpus, tmp_path, expected):
    shutil.copytree(corpus / "features", tmp_path / "features")
    options = {"features": [tmp_path / "features"]}
    run(corpus, tmp_path / "out", **options)
    np.save(tmp_path / "features" / "video03.npy", np.ones((23, CHANNELS), np.float32))
    (tmp_path / "features" / "video06.npy").unlink()  # its answers stay
    table = pq.read_table(corpus / "videos.parquet").to_pylist()
    for row in table[4:6]:
        row["duration"] += 0.25
    options["videos"] = write_lines(tmp_path / "v.jsonl", table)
    again = run(corpus, tmp_path / "out", **options)
    assert (again.videos, again.done_before) == (3, 9)
    found = rows_of(tmp_path / "out")
    assert found.keys() == expected.keys()
    others = {video for video, query in found if found[video, query] != expected[video, query]}
    assert others == {"video03", "video04", "video05"}
    pq.read_table(tmp_path / "out")  # as one table


def test_a_run_that_is_interrupted_is_gone_on_with(corpus, tmp_path, expected):
    def interrupt(done, count):
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(corpus, tmp_path, on_file=interrupt)
    assert run(corpus, tmp_path).done_before == 4
    assert_alike(rows_of(tmp_path), expected)


def test_json_lines_are_tables_too(corpus, tmp_path, expected):
    tables = {}
    for name in ("videos", "queries"):
        rows = pq.read_table(corpus / f"{name}.parquet").to_pylist()
        tables[name] = write_lines(tmp_path / f"{name}.JSONL", rows)
    run(corpus, tmp_path / "out", **tables)
    assert rows_of(tmp_path / "out") == expected
    videos = zip(QUERIES, ["video00", "video05"], strict=False)
    rows = [{"query_id": "a", "query": query, "video_id": video} for query, video in videos]
    own = write_lines(tmp_path / "own.jsonl", rows)
    assert run(corpus, tmp_path / "own", queries=own).pairs == 2
    assert rows_of(tmp_path / "own").keys() == {("video00", "a"), ("video05", "a")}


def test_a_folder_of_videos_is_asked_by_their_names(corpus, tmp_path):
    folder = tmp_path / "videos"
    folder.mkdir()
    for index, name in enumerate(("b.mp4", "a.mp4")):
        write_video(folder / name, make_pictures(16, index))
    (folder / "notes.txt").touch()
    localizer, frames = make_localizer(num_samples=2), FrameEncoder("test_resnet", pretrained=False)
    pipe = make_pipe(localizer, frame_encoder=frames)
    pipe.save_pretrained(tmp_path / "pipeline")
    options = {"pipeline": tmp_path / "pipeline", "videos": folder, "features": ()}
    report = run(corpus, tmp_path / "out", **options)
    assert (report.pairs, report.failed) == (6, ())
    found = rows_of(tmp_path / "out")
    assert found.keys() == {(video, query) for video in "ab" for query in "789"}
    assert_row(found["a", "7"], pipe, folder / "a.mp4")
    (folder / "a.webm").touch()
    with refuses(ArgumentError, "localize_corpus: expected one file per id, got "):
        run(corpus, tmp_path / "other", **options)
    (folder / "a.webm").unlink()
    write_video(folder / "a.mp4", make_pictures(30, 5))
    assert run(corpus, tmp_path / "out", **options).videos == 1
    assert rows_of(tmp_path / "out")["a", "7"] != found["a", "7"]


def test_moments_are_valid_annotations(corpus, tmp_path):
    durations = {"video00": 30.53, "video01": 9.999999, "video02": 100 / 3, "video03": 30.530071}
    columns = {"video_id": [*durations], "duration": [*durations.values()]}
    videos = write(tmp_path / "videos.parquet", **columns)
    options = CorpusOptions(top_n=100, ranking="nms")
    run(corpus, tmp_path / "out", videos=videos, options=options)
    for (video_id, _), row in rows_of(tmp_path / "out").items():
        moments = tuple((one["start"], one["end"]) for one in row["moments"])
        Annotation(0, "v", "q", durations[video_id], moments)


def test_a_video_that_fails_is_reported_and_tried_again(corpus, tmp_path):
    videos = write(tmp_path / "videos", video_id=["video00", "late"], duration=[10.0, 4.0])
    report = run(corpus, tmp_path / "out", videos=videos)
    assert report.videos == 1
    assert [one.video_id for one in report.failed] == ["late"]
    assert "expected features of 'late'" in report.failed[0].error
    assert "1 failed" in str(report)
    late = corpus / "features" / "late.npy"
    np.save(late, np.ones((8, CHANNELS), np.float32))
    again = run(corpus, tmp_path / "out", videos=videos)
    late.unlink()
    assert (again.videos, again.failed) == (1, ())
    assert len(rows_of(tmp_path / "out")) == 6


@uses_ray
def test_a_worker_that_is_killed_loses_and_repeats_nothing(tmp_path):
    psutil = pytest.importorskip("psutil")
    corpus = make_corpus(tmp_path, 60)
    calls, killed = [], []

    def kill_a_worker(done, count):
        calls.append((done, count))
        if killed or done < 4:
            return
        for process in psutil.Process().children(recursive=True):
            if "ray::" in "".join(process.cmdline()) and "MapWorker" in "".join(process.cmdline()):
                killed.append((done, process.pid))
                os.kill(process.pid, signal.SIGKILL)
                return

    report = run(corpus, tmp_path / "out", num_workers=2, videos_per_file=1, on_file=kill_a_worker)
    assert killed
    assert killed[0][0] < 60
    assert calls == [(done, 60) for done in range(1, 61)]
    assert (report.videos, report.failed) == (60, ())
    found = rows_of(tmp_path / "out")
    assert len(found) == 180
    run(corpus, tmp_path / "again")
    assert_alike(found, rows_of(tmp_path / "again"))
    assert not list((tmp_path / "out").glob(".*"))


@uses_ray
def test_warnings_of_workers_are_told(corpus, tmp_path):
    frames = FrameEncoder("test_resnet", pretrained=False)
    make_pipe(frame_encoder=frames).save_pretrained(tmp_path / "pipeline")
    (tmp_path / "features").mkdir()
    names = ["video00", "video01"]
    for name in names:
        np.save(tmp_path / "features" / f"{name}.npy", np.ones((40, frames.feature_dim), "f4"))
    stated = {"attributes": {"model": "b", "model_sha256": "0"}, "videos": {}}
    (tmp_path / "features" / "attributes.json").write_text(json.dumps(stated))
    videos = write(tmp_path / "videos", video_id=names, duration=[10.0, 10.0])
    places = {"pipeline": tmp_path / "pipeline", "features": [tmp_path / "features"]}
    options = {"videos": videos, "videos_per_file": 1, "num_workers": 1}
    with pytest.warns(UserWarning, match="the pipeline uses timm test_resnet") as told:
        assert run(corpus, tmp_path / "out", **options, **places).videos == 2
    assert len([one for one in told if "timm test_resnet" in str(one.message)]) == 1


@uses_ray
def test_threads_of_workers_wait_for_a_moment_only(corpus, tmp_path, monkeypatch):
    class Telling:  # a local class, which is pickled by value
        def __init__(self, **settings):
            pass

        def __call__(self, row):
            import json
            import os

            told = str(os.environ.get("GOMP_SPINCOUNT"))
            failed = json.dumps([["a video", told]])
            return {"videos": 0, "pairs": 0, "in_windows": 0, "failed": failed, "told": "[]"}

    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):  # as if unset by the user
        monkeypatch.delenv(name, raising=False)
    # Different from the number that Ray's own processes may have.
    monkeypatch.setattr("tmapdiff.spinning._BRIEF", {"GOMP_SPINCOUNT": "1234"})
    monkeypatch.setattr("tmapdiff.corpus._ShareLocalizer", Telling)
    report = run(corpus, tmp_path / "out", num_workers=1, videos_per_file=12)
    assert [one.error for one in report.failed] == ["1234"]


def test_results_of_another_run_are_kept_apart(corpus, finished, tmp_path):
    start = f"localize_corpus: expected {finished} to belong to a run with the same "
    other = write(tmp_path / "queries", query_id=[7], query=["a door"])
    with refuses(ConfigError, f"{start}queries, got a different one. Use another output folder."):
        run(corpus, finished, queries=other)
    with refuses(ConfigError, f"{start}options, got a different one."):
        run(corpus, finished, options=CorpusOptions(seed=3))
    manifest = json.loads((finished / "_corpus.json").read_text())
    (finished / "_corpus.json").write_text(json.dumps({**manifest, "pipeline": "?"}))
    with refuses(ConfigError, f"{start}pipeline, got a different one."):
        run(corpus, finished)


def test_errors_say_what_is_wrong(corpus, tmp_path):
    text = tmp_path / "text"
    text.write_text("no table")
    twice = write(tmp_path / "twice", video_id=["a", "b", "b"], duration=[1.0, 2.0, 3.0])
    empty = write(tmp_path / "empty", query_id=[1, 2], query=["a", None])
    lists = write(tmp_path / "lists", query_id=[1], query=[["a"]])
    texts = write(tmp_path / "texts", video_id=["a"], duration=["1.0"])
    astray = write(tmp_path / "astray", query_id=[1], query=["a"], video_id=["elsewhere"])
    short = write_lines(tmp_path / "a.jsonl", [{"query_id": 1}])
    flags = write_lines(tmp_path / "b.jsonl", [{"video_id": "a", "duration": True}])
    gaps = [{"query_id": 1, "query": "a"}, {"query_id": 2, "query": None}]
    gaps = write_lines(tmp_path / "c.jsonl", gaps)
    none, no_path, nothing = tmp_path / "none", corpus / "videos.parquet", tmp_path / "nothing"
    nothing.mkdir()
    for kind, wrong, expected in (
        (FileError, {"videos": none}, f"cannot read {none}: no such file or folder."),
        (FileError, {"videos": text}, f"cannot read {text}: "),
        (ArgumentError, {"queries": nothing}, f"{nothing}: expected Parquet files, got an empty"),
        (AnnotationError, {"features": ()}, f"{no_path} row 1: expected the field 'path', got the"),
        (ArgumentError, {"videos": twice}, f"{twice}: expected each video_id once, got 'b' again."),
        (ArgumentError, {"queries": empty}, f"{empty} row 2: expected query as str, got None."),
        (ArgumentError, {"queries": lists}, f"{lists} row 1: expected query as str, got ['a']."),
        (ArgumentError, {"videos": texts}, f"{texts} row 1: expected duration as int or float,"),
        (ArgumentError, {"queries": astray}, "localize_corpus: expected queries for the given vid"),
        (AnnotationError, {"queries": short}, "a.jsonl line 1: expected the field 'query', got"),
        (ArgumentError, {"videos": flags}, "line 1: expected duration as int or float, got True."),
        (ArgumentError, {"queries": gaps}, "c.jsonl line 2: expected query as str, got None."),
        (ArgumentError, {"num_workers": -1}, "localize_corpus: expected num_workers to be an int"),
    ):
        with refuses(kind, expected):
            run(corpus, tmp_path / "out", **wrong)
    assert not (tmp_path / "out").exists()


def test_tables_that_declare_more_than_memory_holds(corpus, tmp_path, monkeypatch):
    pa = pytest.importorskip("pyarrow")
    monkeypatch.setenv("TMAPDIFF_MAX_ITEM_BYTES", str(2**20))
    rows = 100_000
    same = pa.repeat(pa.scalar("a"), rows)
    many = write(tmp_path / "many", query_id=same, query=same)
    assert many.stat().st_size < 2**12
    with refuses(SizeLimitError, f"{many}: expected a table of at most 1,048,576 bytes, got 12,8"):
        run(corpus, tmp_path / "out", queries=many)
    # Each file is small enough, but together they are not.
    folder = tmp_path / "folder"
    folder.mkdir()
    for index in range(3):
        some = pa.array([f"{index} {row}" for row in range(4000)])
        write(folder / f"{index}.parquet", query_id=some, query=some)
    with refuses(SizeLimitError, f"{folder}: expected a table of at most 1,048,576 bytes, got 1,"):
        run(corpus, tmp_path / "out", queries=folder)
    long = tmp_path / "long"
    pq.write_table(pa.table({"query_id": [1], "query": ["a" * 2**21]}), long, compression="zstd")
    assert long.stat().st_size < 2**12
    with refuses(SizeLimitError, f"{long}: expected a group of rows of at most 1,048,576 bytes"):
        run(corpus, tmp_path / "out", queries=long)


def test_columns_of_files_of_one_table(corpus, tmp_path):
    """A column that only some files have is a column with gaps."""
    table = tmp_path / "queries"
    table.mkdir()
    write(table / "a.parquet", query_id=[1], query=["door"])
    write(table / "b.parquet", query_id=["2"], query=["person"], video_id=["video01"])
    with refuses(ArgumentError, f"{table}: expected a video_id in every row, or in none, got 1 in"):
        run(corpus, tmp_path / "out", queries=table)
    write(table / "a.parquet", query_id=[1], query=["door"], video_id=["video02"])
    run(corpus, tmp_path / "out", queries=table)
    assert set(rows_of(tmp_path / "out")) == {("video02", "1"), ("video01", "2")}


def test_damaged_moments_are_noticed(corpus, finished, expected):
    path = sorted(finished.glob("*.parquet"))[1]
    good = path.read_bytes()
    footer = int.from_bytes(good[-8:-4], "little") + 8
    noticed = []
    for place in range(0, len(good) - footer, 61):
        content = bytearray(good)
        content[place] ^= 0x10
        path.write_bytes(content)
        try:
            run(corpus, finished)
        except FileError as error:
            noticed.append(str(error))
        else:  # damage of what does not matter, such as statistics
            assert_alike(rows_of(finished), expected)
    assert len(noticed) > 10
    told = f"{path}: expected an intact file of a corpus run, got "
    assert all(one.startswith(told) for one in noticed)
    assert noticed[0].endswith("Remove it to localize its videos again.")
    path.unlink()
    report = run(corpus, finished)
    assert (report.videos, report.done_before) == (2, 10)
    assert_alike(rows_of(finished), expected)
