"""What is fuzzed: for each kind of file that is read, small whole ones and the reading of them."""

import atexit
import functools
import io
import json
import math
import os
import random
import re
import signal
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import h5py
import numpy as np
import torch
import yaml
from accelerate.state import AcceleratorState
from helpers.corpora import make_corpus
from helpers.crash_run import make_trainer
from helpers.datasets import query_line, write_charades, write_lines
from helpers.fuzzing.mutations import mutate
from helpers.migration import EXPERIMENT
from helpers.pipelines import WORDS, make_frame_encoder, make_localizer, make_pipe
from helpers.text_encoders import save_two_towers, tiny_text_encoder
from helpers.videos import evenly, write_video
from torch import Tensor

import tmapdiff
from tmapdiff._core.declared_weights import check_declared_bytes
from tmapdiff.corpus import CorpusOptions, localize_corpus
from tmapdiff.data import AnnotationSet, encode_text_track, load_glove, load_text_track
from tmapdiff.data._video_ids import _file_name, video_id_of
from tmapdiff.video import FeatureStoreWriter

Files = Mapping[str, bytes]


@dataclass(frozen=True)
class Target:
    """A kind of input.

    Attributes:
        name: Its name.
        seeds: Makes whole inputs, each of some files by name; a folder is there to write in.
        check: Reads the input in a folder and checks what came of it; what is wrong is an
            AssertionError, what cannot be read a TmapdiffError.
        share: Of the cases of a run, in comparison with the others.
        megabytes: What a case may reserve beside what the process has before it.
    """

    name: str
    seeds: Callable[[Path], list[Files]]
    check: Callable[[Path], None]
    share: float = 1.0
    megabytes: int = 1024

    def damaged(self, seeds: list[Files], draw: random.Random, number: int) -> Files:
        """Make case `number`: choose a seed and damage one of its files, now and then two."""
        files = dict(draw.choice(seeds))
        for _ in range(draw.choice((1, 1, 1, 2))):
            name = draw.choice(sorted(files))
            others = [content for seed in seeds for content in seed.values()]
            files[name] = mutate(files[name], draw, others)
        return files


def _files(folder: Path) -> Files:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# Features


def _array(length: int = 6) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((length, 4)).astype(np.float32)


def _check_store(folder: Path) -> None:
    hdf5 = folder / "features.hdf5"
    store = tmapdiff.open_feature_store(hdf5 if hdf5.exists() else folder)
    assert isinstance(store.feature_dim, int)
    stride = store.seconds_per_feature
    assert stride is None or (math.isfinite(stride) and stride > 0)
    assert isinstance(store.attributes, dict)
    assert isinstance(store.attributes_of("A"), dict)
    assert "../A" not in store
    for video_id in ("A", "B", *islice(store.video_ids, 5)):
        if video_id in store:
            features = store[video_id]
            assert isinstance(features, Tensor)
            assert features.dtype == torch.float32
            assert features.shape == (max(len(features), 1), store.feature_dim)
            assert torch.isfinite(features).all()
            features += 1  # is ours


def _hdf5_seeds(folder: Path) -> list[Files]:
    ways = {
        "plain": {},
        "packed": {"chunks": (4, 4), "compression": "gzip", "shuffle": True, "fletcher32": True},
        "fast": {"chunks": (4, 4), "compression": "lzf"},
        "grown": {"chunks": (2, 4), "maxshape": (None, 4)},
    }
    seeds = []
    for name, way in ways.items():
        for version in ("earliest", "latest"):
            path = folder / f"{name}.hdf5"
            with h5py.File(path, "w", libver=version) as file:
                file.create_dataset("A", data=_array(), **way)
                file.create_group("B").create_dataset("c3d", data=_array(3).astype(np.float16))
                file.attrs["seconds_per_feature"] = 0.5
                file.attrs["model"] = np.bytes_(b"resnet")
                file.attrs["texts"] = "of variable length, which is left out"
                file["A"].attrs["source"] = np.bytes_(b"A.mp4")
            seeds.append({"features.hdf5": path.read_bytes()})
    return seeds


def _saved(save: Callable[..., None], *values: Any, **options: Any) -> bytes:
    """What a function writes into the file that it is given first."""
    file = io.BytesIO()
    save(file, *values, **options)
    return file.getvalue()


def _npy_seeds(folder: Path) -> list[Files]:
    arrays = (
        _array(),
        _array().astype(">f8"),
        np.asfortranarray(_array()),
        _array()[:, None, None].astype(np.float16),
        (_array() * 100).astype(np.int16),
    )
    stated = {"attributes": {"seconds_per_feature": 0.5}, "videos": {"A": {"source": "A.mp4"}}}
    return [
        {
            "A.npy": _saved(np.save, array),
            "B.npy": _saved(np.save, array[:2]),
            "%=12%3A30.npy": _saved(np.save, array[:3]),
            "attributes.json": _json(stated),
            "._A.npy": b"Mac OS X",
        }
        for array in arrays
    ]


def _npz_seeds(folder: Path) -> list[Files]:
    arrays = {"features": _array(), "other": _array(2)}
    return [{"A.npz": _saved(save, **arrays)} for save in (np.savez, np.savez_compressed)]


def _pt_seeds(folder: Path) -> list[Files]:
    array = torch.from_numpy(_array())
    kinds = (array, array.bfloat16(), array.double().T.contiguous().T, array[::2])
    return [{"A.pt": _saved(_save_tensors, kind)} for kind in kinds]


def _save_tensors(file: io.BytesIO, content: Any, **options: Any) -> None:
    torch.save(content, file, **options)


# Annotations

_VIDEOS = ("AO8RW", "v_ehGHCYKzyZ8", "s13-d21.avi", "Wait... what", "12:30 %=日本")


def _check_annotations(found: AnnotationSet) -> None:
    assert len(found) == found.report.kept
    for item in found:
        assert math.isfinite(item.duration)
        assert item.query.strip()
        assert item.moments
        assert all(0 <= start < end <= item.duration for start, end in item.moments)
        name = _file_name(item.video_id, ".npy")
        for place in (PurePosixPath("/features"), PureWindowsPath("X:/features")):
            assert (place / name).parent == place, item.video_id
        assert video_id_of(name, ".npy") == item.video_id
    assert len(found.restrict_to(set(found.video_ids))) == len(found)
    str(found.report)


def _json(value: object) -> bytes:
    return json.dumps(value, indent=1).encode()


def _jsonl_seeds(folder: Path) -> list[Files]:
    query = "some military patriots takes us through their safety procedures."
    answer = {"pred_relevant_windows": [[72, 82, 0.9], [84, 94.5, 0.1]]}
    videos = [(9769 + i, f"j7rJstUseKg_{i}.0_360.0") for i in range(4)]
    lines = [query_line(*one, [[72.5, 82], [84, 94]], query, 150) | answer for one in videos]
    write_lines(folder / "lines.jsonl", lines)
    return [_files(folder)]


def _check_jsonl(folder: Path) -> None:
    _check_annotations(tmapdiff.load_moment_jsonl(folder / "lines.jsonl"))


def _check_submission(folder: Path) -> None:
    for one in tmapdiff.read_submission(folder / "lines.jsonl"):
        assert all(math.isfinite(value) for window in one.windows for value in window)


def _charades_seeds(folder: Path) -> list[Files]:
    write_charades(folder, _VIDEOS, actions="c001 0.00 5.10;c156 1.50 20.00")
    return [{name: one for name, one in _files(folder).items() if "train" in name}]


def _check_charades(folder: Path) -> None:
    _check_annotations(tmapdiff.load_charades_sta(folder, "train"))
    store = tmapdiff.ActionTimelineFeatures.from_charades(folder, ["train"], feature_dim=4)
    for video_id in store.videos:
        assert torch.isfinite(store[video_id]).all()


def _activitynet_seeds(folder: Path) -> list[Files]:
    captions = {
        one: {"duration": 82.7, "timestamps": [[0.8, 19.9], [17, 60]], "sentences": ["A.", "b c"]}
        for one in _VIDEOS
    }
    tacos = {
        one: {"num_frames": 9000, "fps": 29.4, "timestamps": [[82, 300]], "sentences": ["He cuts."]}
        for one in _VIDEOS
    }
    return [{"captions.json": _json(captions), "tacos.json": _json(tacos)}]


def _check_activitynet(folder: Path) -> None:
    _check_annotations(tmapdiff.load_activitynet_captions(folder / "captions.json"))
    _check_annotations(tmapdiff.load_tacos(folder / "tacos.json"))


def _didemo_seeds(folder: Path) -> list[Files]:
    records = [
        {
            "annotation_id": i,
            "video": f"{one}.mov",
            "description": "the dog jumps",
            "num_segments": 6 - i % 2,
            "times": [[0, 1], [0, 0], [1, 4]],
        }
        for i, one in enumerate(_VIDEOS)
    ]
    return [{"train_data.json": _json(records)}]


def _check_didemo(folder: Path) -> None:
    _check_annotations(tmapdiff.data.keep_consensus(tmapdiff.load_didemo(folder, "train")))


def _vslnet_seeds(folder: Path) -> list[Files]:
    lengths = {one: {"duration": 30.5, "timestamps": [], "sentences": []} for one in _VIDEOS}
    lines = _charades_seeds(folder)[0]["charades_sta_train.txt"]
    return [{"charades.json": _json(lengths), "charades_sta_train.txt": lines}]


def _check_vslnet(folder: Path) -> None:
    _check_annotations(tmapdiff.load_vslnet(folder, "charades", "train"))


# Words


def _glove_seeds(folder: Path) -> list[Files]:
    words = ("the", "of", "door", "person", "o'clock", ". .", "\u00e9t\u00e9")
    vectors = np.random.default_rng(0).standard_normal((len(words), 5)).round(4)
    rows = zip(words, vectors.astype(str), strict=True)
    return [{"glove.txt": "".join(f"{word} {' '.join(row)}\n" for word, row in rows).encode()}]


def _check_glove(folder: Path) -> None:
    glove = load_glove(folder / "glove.txt")
    assert glove.vectors.shape == (len(glove.words), glove.vectors.shape[1])
    table, found = glove.rows_for(tmapdiff.Vocabulary(["door", "the"]))
    assert torch.isfinite(table).all()
    assert 0 <= found <= 2


def _vocabulary_seeds(folder: Path) -> list[Files]:
    path = folder / "vocabulary.json"
    tmapdiff.Vocabulary(["person", "door", "\u00e9t\u00e9", "o'clock"]).save(path)
    return [_files(folder)]


def _check_vocabulary(folder: Path) -> None:
    vocabulary = tmapdiff.Vocabulary.load(folder / "vocabulary.json")
    assert all(vocabulary.words)
    assert vocabulary.encode("person opens a door").max() < len(vocabulary)


# Models


def _model_seeds(folder: Path) -> list[Files]:
    make_localizer().save_pretrained(folder / "localizer")
    make_localizer(tmapdiff.MS2DTAN).save_pretrained(folder / "ms2dtan")
    tmapdiff.MapScheduler().save_pretrained(folder / "scheduler")
    return [_files(folder / one) for one in ("localizer", "ms2dtan", "scheduler")]


def _check_model(folder: Path) -> None:
    if (folder / "scheduler_config.json").exists():
        scheduler = tmapdiff.MapScheduler.from_pretrained(folder)
        scheduler.set_timesteps(3)
        assert torch.isfinite(scheduler.alphas_cumprod).all()
        return
    kind = tmapdiff.MS2DTAN if b"MS2DTAN" in _config(folder) else tmapdiff.MomentLocalizer
    model = kind.from_pretrained(folder)
    assert model.grid.num_cells <= 1 << 20
    words = torch.ones(1, 3, dtype=torch.long)
    features = torch.zeros(1, model.grid.num_clips, model.encoder.config.clip_channels)
    found = model.localize(features, words, torch.tensor([3]), torch.ones(1))
    assert found.maps.shape == (1, model.grid.num_cells)


def _config(folder: Path) -> bytes:
    path = folder / "config.json"
    return path.read_bytes() if path.exists() else b""


def _pipeline_seeds(folder: Path) -> list[Files]:
    make_pipe(frame_encoder=make_frame_encoder()).save_pretrained(folder)
    return [_files(folder)]


def _check_pipeline(folder: Path) -> None:
    pipe = tmapdiff.MomentLocalizationPipeline.from_pretrained(folder)
    pictures = np.zeros((8, 48, 64, 3), np.uint8)
    video = pipe.encode_video(pictures, frame_rate=4.0)
    found = pipe(video, "person opens a door", num_inference_steps=2)
    for moment in found.moments[0]:
        assert 0 <= moment.start < moment.end


def _text_encoder_seeds(folder: Path) -> list[Files]:
    for kind in ("bert", "clip", "siglip"):
        tiny_text_encoder(WORDS, 8, kind).save_pretrained(folder / kind)
    return [_files(one) for one in sorted(folder.iterdir())]


def _check_text_encoder(folder: Path) -> None:
    encoder = tmapdiff.models.TransformersTextEncoder(folder)
    found = encoder(["a person opens the door", "the door"])
    assert found.sentences.shape == (2, encoder.sentence_channels)
    assert found.tokens.shape == (2, max(found.num_tokens), encoder.token_channels)


def _image_tower_seeds(folder: Path) -> list[Files]:
    for kind in ("clip", "siglip"):
        save_two_towers(folder / "whole", WORDS, kind)
        tmapdiff.TransformersFrameEncoder(folder / "whole").save_pretrained(folder / kind)
    return [_files(folder / kind) for kind in ("clip", "siglip")]


def _check_image_tower(folder: Path) -> None:
    encoder = tmapdiff.TransformersFrameEncoder(folder)
    found = encoder.encode([np.zeros((48, 64, 3), np.uint8)])
    assert found.shape == (1, encoder.feature_dim)


_TRACKS = {
    "srt": "1\n00:00:01,000 --> 00:00:02,500\n<i>a person</i>\nopens\n\n"
    "2\n00:00:02,000 --> 100:00:04,000\n{\\an8}the door\n",
    "vtt": "WEBVTT\n\nNOTE 00:01.000 --> 00:02.000\n\n1\n00:01.000 --> 00:02.500 align:start\n"
    "<v Ann>a &amp; person</v>\n\n00:02.000 --> 00:04.000\nopens\n",
    "jsonl": '{"start": 1, "end": 2.5, "text": "a person"}\n'
    '{"start": 2, "duration": 2, "text": "opens"}\n',
}


def _track_seeds(folder: Path) -> list[Files]:
    return [{f"track.{suffix}": content.encode()} for suffix, content in _TRACKS.items()]


def _check_track(folder: Path) -> None:
    (path,) = folder.iterdir()
    cues = load_text_track(path)
    assert all(0 <= cue.start < cue.end and cue.text for cue in cues)
    found = encode_text_track(cues, _track_encoder())
    assert found.isfinite().all()
    assert len(found) >= max(cue.end for cue in cues) - 1e-3


@functools.cache
def _track_encoder() -> tmapdiff.TransformersTextEncoder:
    return tiny_text_encoder(WORDS, 4)


def _ms2dtan_seeds(folder: Path) -> list[Files]:
    weights = {"a.weight": torch.ones(3, 4), "a.bias": torch.ones(3)}
    return [
        {
            "experiment.yml": yaml.safe_dump(EXPERIMENT).encode(),
            "weights.pkl": _saved(
                _save_tensors, weights, _use_new_zipfile_serialization=not is_old
            ),
        }
        for is_old in (False, True)
    ]


def _check_ms2dtan(folder: Path) -> None:
    from tmapdiff.migration.ms2dtan import _read_weights

    for name, tensor in _read_weights("load_ms2dtan", folder / "weights.pkl").items():
        assert isinstance(name, str)
        tensor.float().sum()
    experiment = tmapdiff.ms2dtan_config(folder / "experiment.yml")
    check_declared_bytes("fuzz", 1 << 20, lambda: experiment.build_ms2dtan(vocabulary_size=10))


def _trainer(folder: Path) -> tmapdiff.Trainer:
    AcceleratorState._reset_state(reset_partial_state=True)
    return make_trainer(folder)


def _checkpoint_seeds(folder: Path) -> list[Files]:
    _trainer(folder).save_checkpoint()
    return [_files(folder)]


def _check_checkpoint(folder: Path) -> None:
    trainer = _trainer(folder).resume()
    assert 0 <= trainer.progress.epoch <= trainer.config.epochs
    assert isinstance(trainer.progress.step, int)
    for tensor in trainer.raw_model.state_dict().values():
        assert tensor.numel() >= 0


# Videos

_NUM_FRAMES = 20


def _video_seeds(folder: Path) -> list[Files]:
    ways = (
        ("mp4", "libx264", "yuv420p"),
        ("matroska", "libx264", "yuv420p"),
        ("webm", "libvpx", "yuv420p"),
        ("avi", "mpeg4", "yuv420p"),
        ("mpegts", "mpeg2video", "yuv420p"),
        ("gif", "gif", "rgb8"),
        ("flv", "flv", "yuv420p"),
    )
    images = []
    for i in range(_NUM_FRAMES):
        image = np.full((48, 64, 3), i * 12, np.uint8)
        image[:, 3 * i : 3 * i + 8] = 255 - image[:, 3 * i : 3 * i + 8]
        images.append(image)
    beat = Fraction(1, 25)
    times = evenly(_NUM_FRAMES, period=beat)
    fields = {"images": images, "time_base": beat, "rate": 25, "gop": 12}
    return [
        {"video": _saved(write_video, times, format=format, codec=codec, pix_fmt=pix_fmt, **fields)}
        for format, codec, pix_fmt in ways
    ]


def _check_video(folder: Path) -> None:
    path = folder / "video"
    tmapdiff.probe_video(path)
    with tmapdiff.open_video(path, num_threads=1) as video:
        size = None
        times = []
        for frame in video.sample(Fraction(2)):
            times.append(frame.time)
            size = frame.image.shape
            assert (frame.image.dtype, size[2:]) == (np.uint8, (3,))
        assert size is not None
        assert times == sorted(times)
        assert all(math.isfinite(time) for time in times)
        assert video.duration is not None
        assert math.isfinite(video.duration)


# Clocks of videos: whatever they do, no frame is lost without a word


class _ClockTarget(Target):
    def damaged(self, seeds: list[Files], draw: random.Random, number: int) -> Files:
        content = bytearray(draw.choice(seeds)["video"])
        packets = list(_PACKET.finditer(content))
        for _ in range(draw.choice((1, 1, 2, 4))):
            first = draw.randrange(len(packets))
            last = draw.choice((first + 1, first + 2, len(packets)))
            shift = draw.choice((-(2**32), -200_000, -7200, -3600, 1, 3600, 10**6, 2**31, None))
            for packet in packets[first:last]:
                _shift_clock(content, packet, shift)
        return {"video": bytes(content)}


# The header of a packet of MPEG-TS' elementary streams, and its one or two times.
_PACKET = re.compile(rb"\x00\x00\x01\xe0..[\x80-\xbf][\x80\xc0].", re.DOTALL)


def _shift_clock(content: bytearray, packet: re.Match[bytes], shift: int | None) -> None:
    """Add some ticks, of 90,000 a second, to the times of a packet; None removes them."""
    if shift is None:
        content[packet.start() + 7] &= 0x3F
        return
    for index in range(1 + content[packet.start() + 7] // 0xC0):
        place = packet.end() + 5 * index
        kind, *time = content[place : place + 5]
        ticks = (kind >> 1 & 7) << 30 | time[0] << 22 | time[1] >> 1 << 15 | time[2] << 7
        ticks = ((ticks | time[3] >> 1) + shift) % 2**33
        parts = (kind & 0xF0 | ticks >> 30 << 1 | 1, ticks >> 22 & 255, ticks >> 14 & 255 | 1)
        content[place : place + 5] = bytes((*parts, ticks >> 7 & 255, ticks << 1 & 255 | 1))


def _clock_seeds(folder: Path) -> list[Files]:
    return [one for one in _video_seeds(folder) if one["video"][188:189] == b"G"]  # MPEG-TS


def _check_clock(folder: Path) -> None:
    _check_video(folder)
    with tmapdiff.open_video(folder / "video", num_threads=1) as video:
        seen = {int(frame.image.mean()) for frame in video.sample(Fraction(1000))}
        # As many as there are, each of another brightness, but for what the codec blurs.
        assert len(seen) >= _NUM_FRAMES - 2 or video.damage
        assert video.duration < 60 or video.damage


# Tables of a corpus, and what earlier runs found in it


_CORPUS = Path(tempfile.gettempdir())  # replaced when seeds are made: what is not damaged


def _corpus_seeds(folder: Path) -> list[Files]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    global _CORPUS
    made = tempfile.TemporaryDirectory()
    atexit.register(made.cleanup)
    _CORPUS = make_corpus(Path(made.name), 3)
    tables = {name: pq.read_table(_CORPUS / f"{name}.parquet") for name in ("videos", "queries")}
    ways = {
        "plain": {"compression": "none", "use_dictionary": False},
        "packed": {"compression": "zstd", "data_page_version": "2.0"},
        "pages": {"row_group_size": 1, "write_page_index": True},
    }
    seeds = []
    for name, way in ways.items():
        place = folder / name
        place.mkdir()
        for table, content in tables.items():
            pq.write_table(content, place / f"{table}.parquet", **way)
        if name != "plain":
            _check_corpus(place)  # and leaves moments
        seeds.append(_files(place))
    numbers = pa.table({"query_id": [1, 2], "query": ["door", "a"], "video_id": ["video00"] * 2})
    pq.write_table(numbers, folder / "plain" / "queries.parquet")
    lines = folder / "lines"
    lines.mkdir()
    for table, content in tables.items():
        write_lines(lines / f"{table}.jsonl", content.to_pylist())
    return [*seeds, _files(folder / "plain"), _files(lines)]


def _check_corpus(folder: Path) -> None:
    kind = "jsonl" if (folder / "videos.jsonl").exists() else "parquet"
    report = localize_corpus(
        _CORPUS / "pipeline",
        folder / f"videos.{kind}",
        folder / f"queries.{kind}",
        folder / "moments",
        features=[_CORPUS / "features"],
        num_workers=0,
        videos_per_file=2,
        options=CorpusOptions(num_inference_steps=1, num_samples=1),
    )
    for one in report.failed:
        assert len(one.error.splitlines()) == 1
    assert report.pairs or not report.videos


# What extraction leaves for the next


def _writer_seeds(folder: Path) -> list[Files]:
    path = folder / "out.h5"
    with FeatureStoreWriter(path, {"model": "m", "fps": 2.0}) as writer:
        writer.write("A", _array(), {"duration": 3.0})
        writer.finish()
        whole = _files(folder)
        writer.write("B", _array(), {"duration": 3.0})
        writer.write("12:30", _array(), {"duration": 3.0})
        parts = _files(folder)
    return [whole, parts]


def _check_writer(folder: Path) -> None:
    path = folder / "out.h5"
    with FeatureStoreWriter(path, {"model": "m", "fps": 2.0}) as writer:
        writer.write("C", _array(), {"duration": 1.0})
        writer.finish()
    store = tmapdiff.open_feature_store(path)
    assert store["C"].shape == (6, 4)


TARGETS = {
    target.name: target
    for target in (
        Target("hdf5", _hdf5_seeds, _check_store, share=2),
        Target("npy", _npy_seeds, _check_store),
        Target("npz", _npz_seeds, _check_store),
        Target("pt", _pt_seeds, _check_store),
        Target("jsonl", _jsonl_seeds, _check_jsonl),
        Target("submission", _jsonl_seeds, _check_submission),
        Target("charades", _charades_seeds, _check_charades),
        Target("activitynet", _activitynet_seeds, _check_activitynet),
        Target("didemo", _didemo_seeds, _check_didemo),
        Target("vslnet", _vslnet_seeds, _check_vslnet),
        Target("glove", _glove_seeds, _check_glove),
        Target("vocabulary", _vocabulary_seeds, _check_vocabulary, share=0.5),
        Target("model", _model_seeds, _check_model, share=2),
        Target("pipeline", _pipeline_seeds, _check_pipeline),
        Target("text-encoder", _text_encoder_seeds, _check_text_encoder),
        Target("image-tower", _image_tower_seeds, _check_image_tower),
        Target("text-track", _track_seeds, _check_track),
        Target("corpus", _corpus_seeds, _check_corpus),
        Target("ms2dtan", _ms2dtan_seeds, _check_ms2dtan),
        Target("checkpoint", _checkpoint_seeds, _check_checkpoint, share=0.5),
        # FFmpeg reserves up to two gigabytes at once, without using them.
        Target("video", _video_seeds, _check_video, share=2, megabytes=4096),
        _ClockTarget("clock", _clock_seeds, _check_clock, share=0.5, megabytes=4096),
        Target("writer", _writer_seeds, _check_writer, share=0.5),
    )
}


# Cases that end as they may not: what the fuzzer itself is tried with.


class _SelfTest(Target):
    def damaged(self, seeds: list[Files], draw: random.Random, number: int) -> Files:
        return {"case": str(number).encode()}


def _fail(folder: Path) -> None:
    number = (folder / "case").read_text()
    if number == "0":
        1 / 0  # noqa: B018
    if number == "2":
        np.ones(1 << 32)
    while number == "3":
        pass
    if number == "4":
        os.kill(os.getpid(), signal.SIGSEGV)
    errors = {"1": tmapdiff.TmapdiffError("two\nlines"), "5": AssertionError()}
    errors["6"] = tmapdiff.TmapdiffError("one line")
    if number in errors:
        raise errors[number]


SELF_TEST = _SelfTest("self-test", lambda folder: [{"case": b"none"}], _fail)
