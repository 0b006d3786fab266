import io
import os
import subprocess
import sys
from fractions import Fraction

import h5py
import numpy as np
import pytest
import torch
from helpers.assertions import assert_close, refuses
from helpers.pipelines import make_frame_encoder
from helpers.processes import forks
from helpers.videos import evenly, number_image, sampled, write_video

from tmapdiff import FrameEncoder, encode_video, extract_features, open_feature_store
from tmapdiff.data import pool_features
from tmapdiff.errors import (
    ArgumentError,
    FeatureError,
    FileError,
    MissingDependencyError,
    SizeLimitError,
    VideoError,
)
from tmapdiff.inspection import inspect
from tmapdiff.video.decoding import _FORMATS as FORMATS
from tmapdiff.video.extraction import VIDEO_SUFFIXES

pytest.importorskip("av")


@pytest.fixture(scope="module")
def encoder():
    return make_frame_encoder()


def make_video(path, seconds=3, start=0):
    images = [number_image(start + index) for index in range(5 * seconds)]
    times = evenly(5 * seconds, period=Fraction(1, 5))
    base = Fraction(1, 1000) if path.suffix == ".mkv" else Fraction(1, 90_000)
    return write_video(path, times, images=images, rate=5, time_base=base)


def expected_features(path, encoder, fps):
    frames, _ = sampled(path, fps)
    return encoder.encode([frame.image for frame in frames])


@pytest.fixture
def folder(tmp_path):
    """Make a folder of three videos, a truncated one, and four other files."""
    folder = tmp_path / "videos"
    folder.mkdir()
    make_video(folder / "first.mp4")
    make_video(folder / "second one.mkv", 2, start=40)
    make_video(folder / "v_3.0.MOV", 1, start=80)
    whole = make_video(tmp_path / "whole.mkv", 8).read_bytes()
    (folder / "cut.mkv").write_bytes(whole[: len(whole) * 3 // 4])
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "text.avi").write_text("hello")
    (folder / "a\\b.mp4").write_bytes(whole)
    (folder / "notes.txt").write_text("not looked at")
    return folder


@pytest.mark.parametrize("num_workers", [0])
def test_a_folder_of_videos(tmp_path, folder, encoder, num_workers):
    out = tmp_path / "features.h5"
    report = extract_features(folder, encoder, out, fps=2, batch_size=4, num_workers=num_workers)
    assert report.path == out
    assert report.extracted == ("cut", "first", "second one", "v_3.0")
    assert report.kept == ()
    assert [note.video_id for note in report.damaged] == ["cut"]
    assert "it ends at " in report.damaged[0].reason
    skipped = {note.video_id: note.reason for note in report.skipped}
    assert list(skipped) == ["a\\b", "empty", "text"]
    assert skipped["empty"] == f"{folder / 'empty.mp4'}: expected a video, got an empty file."
    assert "expected a video, got text" in skipped["text"]
    assert "expected a video id without" in skipped["a\\b"]
    assert report.passed_over == {".txt": 1}
    lines = str(report).splitlines()
    assert lines[0] == f"{out}: 4 videos extracted, 0 kept, 1 damaged, 3 skipped"
    assert lines[-1] == "other files by suffix: 1 .txt"
    assert len(lines) == 6
    assert {"features.h5", "videos", "whole.mkv"} == {*os.listdir(tmp_path)} - {".features.h5.lock"}

    store = open_feature_store(out)
    assert store.seconds_per_feature == 0.5
    assert store.feature_dim == encoder.feature_dim
    for path in folder.iterdir():
        if path.stem in report.extracted:
            assert_close(store[path.stem], expected_features(path, encoder, 2))
    assert [len(store[name]) for name in ("first", "second one", "v_3.0")] == [6, 4, 2]
    with h5py.File(out) as file:
        assert file.attrs["model"] == b"timm test_resnet, random weights"
        assert file.attrs["model_sha256"] == encoder.fingerprint.encode()
        about = dict(file["first"].attrs)
        assert about["duration"] == pytest.approx(3.0)
        assert (about["fps"], about["seconds_per_feature"]) == (2.0, 0.5)
        assert (about["num_frames"], about["source"]) == (6, b"first.mp4")
        assert about["source_size"] == (folder / "first.mp4").stat().st_size
        assert "damage" not in about
        assert file["cut"].attrs["damage"] == report.damaged[0].reason.encode()


@forks
def test_a_folder_of_videos_with_workers(tmp_path, folder):
    test_a_folder_of_videos(tmp_path, folder, make_frame_encoder(), num_workers=2)


# Suffix, FFmpeg's format, codec, pixel format, time base.
UNUSUAL = [
    (".gif", "gif", "gif", "rgb8", Fraction(1, 5)),
    (".vob", "vob", "mpeg2video", "yuv420p", Fraction(1, 5)),
    (".3g2", "3g2", "mpeg4", "yuv420p", Fraction(1, 5)),
    (".f4v", "f4v", "libx264", "yuv420p", Fraction(1, 90_000)),
    (".divx", "avi", "mpeg4", "yuv420p", Fraction(1, 5)),
    (".m2t", "mpegts", "libx264", "yuv420p", Fraction(1, 90_000)),
    (".MPE", "mpeg", "mpeg1video", "yuv420p", Fraction(1, 25)),
    (".h264", "h264", "libx264", "yuv420p", Fraction(1, 5)),
]


def write_unusual(path, format, codec, pix_fmt, base):
    rate = 25 if codec == "mpeg1video" else 5
    times = evenly(2 * rate, period=Fraction(1, rate))
    options = {"format": format, "codec": codec, "pix_fmt": pix_fmt, "time_base": base}
    return write_video(path, times, rate=rate, **options)


@pytest.mark.parametrize(("suffix", *"fcpb"), UNUSUAL, ids=[one[0] for one in UNUSUAL])
def test_what_can_be_opened_is_found_in_folders(tmp_path, encoder, suffix, f, c, p, b):
    path = write_unusual(tmp_path / f"a{suffix}", f, c, p, b)
    assert len(sampled(path, 2)[0]) == 4
    report = extract_features(tmp_path, encoder, tmp_path / "a.h5", fps=2)
    assert (report.extracted, report.damaged, report.passed_over) == (("a",), (), {})
    for place in (path, tmp_path):
        found = inspect(place)
        assert (found.kind, found.findings) == ("videos", ())
    path.rename(tmp_path / "a.unknown")  # one file is a video by its content
    assert inspect(tmp_path / "a.unknown").facts["a.unknown"]["videos"] == 1


def test_every_suffix_that_ffmpeg_knows_of_formats_that_are_read_is_looked_for():
    av = pytest.importorskip("av")
    known = set()
    for name in FORMATS.split(","):
        for mode in "rw":
            try:
                known |= {f".{one}" for one in av.ContainerFormat(name, mode).extensions}
            except ValueError:  # FFmpeg only reads it
                continue
    stills = {".avif", ".heic", ".heif", ".mpo", ".psp"}
    # fmt: off
    sound = {
        ".aac", ".ac3", ".afc", ".aif", ".aifc", ".aiff", ".amr", ".au", ".caf", ".eac3", ".ec3",
        ".flac", ".isma", ".m2a", ".m4a", ".m4b", ".mka", ".mp2", ".mp3", ".mpa", ".ogg", ".ra",
        ".w64", ".wav", ".wma",
    }
    # fmt: on
    rest = {".dif", ".h26l", ".ism", ".mks"}
    assert known - stills - sound - rest <= set(VIDEO_SUFFIXES)
    assert {".gif", ".3g2", ".f4v", ".mkv"} <= known


def test_other_files_are_counted_by_suffix(tmp_path, encoder):
    folder = tmp_path / "videos"
    folder.mkdir()
    for name in ("a.txt", "b.TXT", "c.srt", "none"):
        (folder / name).write_text("text")
    counts = {"": 1, ".srt": 1, ".txt": 2}
    with refuses(ArgumentError, f"in {folder}, only 1 without any, 1 .srt, 2 .txt."):
        extract_features(folder, encoder, tmp_path / "a.h5", fps=2)
    make_video(folder / "a.mp4", 1)
    report = extract_features(folder, encoder, tmp_path / "a.h5", fps=2)
    assert (report.extracted, report.passed_over) == (("a",), counts)
    assert str(report).endswith("files by suffix: 1 without any, 1 .srt, 2 .txt")
    again = extract_features(folder, encoder, tmp_path / "a.h5", fps=2)
    assert (again.kept, again.passed_over) == (("a",), counts)
    assert inspect(folder).facts["videos"]["skipped files"] == "1 without any, 1 .srt, 2 .txt"


def test_a_gif_beside_its_video_is_no_second_one(tmp_path, encoder):
    folder = tmp_path / "videos"
    folder.mkdir()
    make_video(folder / "a.mp4", 1)
    for name in ("a.gif", "b.gif"):
        write_unusual(folder / name, *UNUSUAL[0][1:])
    report = extract_features(folder, encoder, tmp_path / "a.h5", fps=2)
    assert (report.extracted, report.passed_over) == (("a", "b"), {".gif": 1})
    assert (found := inspect(folder)).findings == ()
    assert found.facts["videos"]["videos"] == 2
    # Nor is one beside annotations a folder of videos.
    write_unusual(tmp_path / "teaser.gif", *UNUSUAL[0][1:])
    assert inspect(tmp_path).kind == "videos"
    (tmp_path / "charades_sta_train.txt").write_text("AO8RW 0.0 6.9##a person opens a door.\n")
    (tmp_path / "Charades_v1_train.csv").write_text("id,length,actions\nAO8RW,33.67,\n")
    assert inspect(tmp_path).kind == "annotations"


def test_a_second_run_does_what_is_left(tmp_path, folder, encoder):
    out = tmp_path / "features.h5"
    extract_features(folder, encoder, out, fps=2)
    before = open_feature_store(out)["first"]
    again = extract_features(folder, encoder, out, fps=2)
    assert again.extracted == ()
    assert again.kept == ("cut", "first", "second one", "v_3.0")
    assert len(again.skipped) == 3
    # One is repaired, one changed, one only touched, one new.
    make_video(folder / "empty.mp4", 2)
    make_video(folder / "v_3.0.MOV", 2, start=100)
    os.utime(folder / "first.mp4", (0, 0))
    make_video(folder / "new.mp4", 1)
    last = extract_features(folder, encoder, out, fps=2)
    assert last.extracted == ("empty", "new", "v_3.0")
    assert last.kept == ("cut", "first", "second one")
    store = open_feature_store(out)
    assert torch.equal(store["first"], before)
    assert_close(store["v_3.0"], expected_features(folder / "v_3.0.MOV", encoder, 2))
    assert len(store["v_3.0"]) == 4


def test_an_interrupted_run_resumes(tmp_path):
    folder, out, encoder = tmp_path / "videos", tmp_path / "features.h5", make_frame_encoder()
    folder.mkdir()
    for index in range(3):
        make_video(folder / f"{index}.mp4", 1, start=10 * index)
    calls = []

    def interrupt(*_):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt

    handle = encoder.register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        extract_features(folder, encoder, out, fps=2)
    handle.remove()
    assert not out.exists()
    report = extract_features(folder, encoder, out, fps=2)
    assert (report.kept, report.extracted) == (("0", "1"), ("2",))
    for path in folder.iterdir():
        expected = expected_features(path, encoder, 2)
        assert_close(open_feature_store(out)[path.stem], expected)


def test_a_changed_file_of_the_same_size_is_noticed(tmp_path, encoder):
    make_video(tmp_path / "a.mp4")
    extract_features([tmp_path / "a.mp4"], encoder, tmp_path / "a.h5", fps=2)
    content = bytearray((tmp_path / "a.mp4").read_bytes())
    content[-1] ^= 1
    (tmp_path / "a.mp4").write_bytes(content)
    os.utime(tmp_path / "a.mp4", (0, 0))
    report = extract_features([tmp_path / "a.mp4"], encoder, tmp_path / "a.h5", fps=2)
    assert report.extracted == ("a",)


def test_damaged_videos_may_be_left_out(tmp_path, folder, encoder):
    report = extract_features(folder, encoder, tmp_path / "a.h5", fps=2, skip_damaged=True)
    assert "cut" not in report.extracted
    assert report.damaged == ()
    assert "it ends at " in {note.video_id: note.reason for note in report.skipped}["cut"]
    assert "cut" not in open_feature_store(tmp_path / "a.h5")


def test_a_name_too_long_for_a_store_is_skipped(tmp_path, encoder):
    names = "a.mp4", f"{'?' * 100}.mp4"  # escaped, 302 bytes
    videos = [make_video(tmp_path / name, seconds=1) for name in names]
    report = extract_features(videos, encoder, tmp_path / "a.h5", fps=1)
    assert report.extracted == ("a",)
    assert "whose file name has at most 255 bytes" in report.skipped[0].reason


def test_models_and_rates_are_not_mixed(tmp_path, encoder):
    make_video(tmp_path / "a.mp4")
    out = tmp_path / "a.h5"
    extract_features([tmp_path / "a.mp4"], encoder, out, fps=2)
    content = out.read_bytes()
    for model, fps, text in (
        (encoder, 3, "fps = 3.0, got 2.0. Write the new features to another"),
        (make_frame_encoder(1), 2, "model_sha256 = "),
        (FrameEncoder("test_vit", pretrained=False), 2, "model = 'timm test_vit, random weights',"),
    ):
        with refuses(FeatureError, f"to have {text}"):
            extract_features([tmp_path / "a.mp4"], model, out, fps=fps)
    assert out.read_bytes() == content


def test_lists_and_mappings(tmp_path, encoder):
    (tmp_path / "sub").mkdir()
    one, two = make_video(tmp_path / "a.mp4"), make_video(tmp_path / "sub" / "a.mkv")
    with refuses(ArgumentError, f"expected one file per id, got {one} and {two}. Rename one, "):
        extract_features([one, two], encoder, tmp_path / "f.h5", fps=1)
    videos = {"a.mp4": one, "b": str(two), "none": tmp_path / "none.mp4", "web": "https://h/a.mp4"}
    report = extract_features(videos, encoder, tmp_path / "f.h5", fps=1)
    assert report.extracted == ("a.mp4", "b")
    skipped, address = report.skipped
    assert "expected a path, got https://h/a.mp4. URLs are not" in address.reason
    assert skipped.video_id == "none"
    assert skipped.reason == f"cannot read {tmp_path / 'none.mp4'}: No such file or directory."
    assert len(open_feature_store(tmp_path / "f.h5")["a.mp4"]) == 3


def test_nothing_that_can_be_decoded_makes_no_store(tmp_path, encoder):
    (tmp_path / "a.mp4").write_bytes(b"")
    report = extract_features([tmp_path / "a.mp4"], encoder, tmp_path / "a.h5", fps=1)
    assert len(report.skipped) == 1
    assert not (tmp_path / "a.h5").exists()


def test_one_video_in_memory(tmp_path, encoder):
    path = make_video(tmp_path / "a.mp4")
    expected = expected_features(path, encoder, 2)
    array = np.stack([number_image(index) for index in range(15)])
    for source, options in (
        (path, {}),
        (path.read_bytes(), {}),
        (io.BytesIO(path.read_bytes()), {"num_threads": 1}),
    ):
        video = encode_video(source, encoder, fps=2, batch_size=4, **options)
        assert_close(video.features, expected)
        assert video.duration == pytest.approx(3.0)
        assert (video.seconds_per_feature, video.damage) == (0.5, None)
    video = encode_video(array, encoder, fps=2, frame_rate=5)
    assert video.features.shape == (6, encoder.feature_dim)
    clips = pool_features(
        video.features, 3, duration=video.duration, seconds_per_feature=video.seconds_per_feature
    )
    assert_close(clips, video.features.unflatten(0, (3, 2)).mean(dim=1))
    assert encode_video(path, encoder, fps=Fraction(1, 3)).seconds_per_feature == 3.0
    with refuses(VideoError, "got an empty file."):
        encode_video(b"", encoder, fps=2)


def test_frames_that_would_be_repeated_too_often_are_refused_immediately(encoder, monkeypatch):
    monkeypatch.setattr(encoder, "encode", lambda *_: pytest.fail("it has begun"))
    array = np.zeros((8, 16, 16, 3), np.uint8)
    size = 8 * 3600 * 1000 * encoder.feature_dim * 4
    expected = "encode_video: expected features of frames of at most 536,870,912 bytes, got"
    with refuses(SizeLimitError, f"{expected} {size:,}. Set the environment variable"):
        encode_video(array, encoder, fps=1000, frame_rate=1 / 3600)


def test_refusals(tmp_path, encoder, monkeypatch):
    out = tmp_path / "a.h5"
    videos = [make_video(tmp_path / "a.mp4")]
    (tmp_path / "empty").mkdir()
    with refuses(ArgumentError, "expected a folder of videos, got no file with a video suffix in"):
        extract_features(tmp_path / "empty", encoder, out, fps=1)
    with refuses(FileError, f"cannot read the folder {tmp_path / 'none'}: No such file"):
        extract_features(tmp_path / "none", encoder, out, fps=1)
    for none in ([], {}):
        with refuses(ArgumentError, "expected videos to be an integer >= 1, got 0."):
            extract_features(none, encoder, out, fps=1)
    for options, text in (
        ({"fps": 0}, "fps in (0, 1000], got 0."),
        ({"batch_size": 0}, "batch_size to be an integer >= 1, got 0."),
        ({"num_workers": -1}, "num_workers to be an integer >= 0, got -1."),
    ):
        with refuses(ArgumentError, f"extract_features: expected {text}"):
            extract_features(videos, encoder, out, **{"fps": 1, **options})
    monkeypatch.setitem(sys.modules, "av", None)
    with refuses(MissingDependencyError, "pip install -e '.[video]'"):
        extract_features(videos, encoder, out, fps=1)
    assert not out.exists()


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_features_that_are_not_finite_are_not_written(tmp_path, value):
    folder, out = tmp_path / "videos", tmp_path / "features.h5"
    folder.mkdir()
    for name in ("bright", "plain"):
        make_video(folder / f"{name}.mp4", 1)
    encoder = make_frame_encoder()
    calls = []

    def overflow(module, frames, features):
        calls.append(len(frames))
        return torch.full_like(features, value) if len(calls) == 1 else None

    encoder.register_forward_hook(overflow)
    report = extract_features(folder, encoder, out, fps=2)
    assert report.extracted == ("plain",)
    text = f"finite features of {encoder.description}, got NaN or infinity."
    assert [str(note.reason) for note in report.skipped] == [f"extract_features: expected {text}"]
    assert open_feature_store(out)["plain"].isfinite().all()
    # The next run tries again.
    assert extract_features(folder, encoder, out, fps=2).extracted == ("bright",)
    calls.clear()
    with refuses(FeatureError, f"encode_video: expected {text}"):
        encode_video(folder / "bright.mp4", encoder, fps=2)


FORK = """
import gc, os, sys, torch
from tmapdiff import FrameEncoder, extract_features, open_video
gc.disable()
video = open_video(sys.argv[1], num_threads=4)
list(video.sample(1))
video.itself = video
del video
os.register_at_fork(after_in_child=gc.collect)
encoder = FrameEncoder("test_resnet", pretrained=False)
extract_features([sys.argv[1]], encoder, sys.argv[2], fps=1, num_workers=1)
"""


@pytest.mark.process
@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
def test_a_worker_does_not_wait_for_threads_that_were_not_forked(tmp_path):
    path = make_video(tmp_path / "a.mp4")
    command = [sys.executable, "-c", FORK, str(path), str(tmp_path / "a.h5")]
    subprocess.run(command, check=True, timeout=60)
    assert len(open_feature_store(tmp_path / "a.h5")["a"]) == 3
