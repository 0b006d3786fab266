import copy
import io
import json
import os
import shutil
import warnings
from itertools import cycle

import numpy as np
import pytest
import torch
from helpers.assertions import assert_close, refuses
from helpers.oracles import dense_saliency
from helpers.pipelines import (
    CHANNELS,
    FPS,
    QUERIES,
    WORDS,
    answer_of,
    assert_alike,
    index_with,
    make_features,
    make_frame_encoder,
    make_localizer,
    make_pictures,
    make_pipe,
    seeds,
    write_video,
)
from helpers.text_encoders import tiny_text_encoder
from helpers.videos import write_video as write_mkv

from tmapdiff import (
    MS2DTAN,
    LocalizedMoment,
    MapScheduler,
    MomentLocalizationPipeline,
    MomentLocalizer,
    Vocabulary,
)
from tmapdiff.data import pool_features
from tmapdiff.errors import (
    ArgumentError,
    CheckpointError,
    ConfigError,
    FeatureError,
    FileError,
    TmapdiffError,
    UnknownWordsWarning,
)


@pytest.fixture(scope="module")
def frame_encoder():
    return make_frame_encoder()


@pytest.fixture(scope="module")
def pipe(frame_encoder):
    return make_pipe(frame_encoder=frame_encoder)


def names(folder):
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix() for path in files}


class TestUnknownWords:
    def test_are_told(self, pipe):
        told = "MomentLocalizationPipeline: the model does not know these words of the queries: "
        with pytest.warns(UnknownWordsWarning) as caught:
            found = pipe(make_features(30), ["the dog opens, the DOG!", "a door", "a cat"])
        assert [str(one.message) for one in caught] == [f"{told}dog, cat."]
        assert len(found.moments) == 3
        with pytest.warns(UnknownWordsWarning, match="these words of the queries: dog."):
            pipe.encode_queries(["the dog"])
        many = " ".join(f"w{number}" for number in range(1000))
        with pytest.warns(UnknownWordsWarning, match="w18, w19 and 980 more.$"):
            pipe.encode_queries([f"the {many}"])
        assert pipe.unknown_words("the dog opens a DOG") == ["dog"]
        with refuses(ArgumentError, "tokenize: expected a sentence with a word, got '?'."):
            pipe.unknown_words("?")

    def test_of_known_words_nothing_is_told(self, pipe):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            pipe(make_features(30), QUERIES)
        assert pipe.unknown_words("A person OPENS the door.") == []

    def test_alone_get_no_answer(self, pipe):
        who = "MomentLocalizationPipeline: expected queries with a word that the model knows, got"
        hint = "It knows 5 words, such as a, person, opens, the, door."
        with refuses(ArgumentError, f"{who} 'el perro ladra'. {hint}"):
            pipe(make_features(30), "el perro ladra")
        with refuses(ArgumentError, f"{who} 'el perro' and 1 more. {hint}"):
            pipe(make_features(30), ["the door", "el perro", "un gato"])


class TestAnswers:
    def test_are_those_of_the_localizer(self):
        localizer, video = make_localizer(), make_features(30)
        pipe = make_pipe(localizer)
        vocabulary = pipe.vocabulary
        found = pipe(video, QUERIES[0], generator=seeds(1), num_inference_steps=3, top_n=4)
        words = vocabulary.encode(QUERIES[0])[None]
        clips = pool_features(
            video.features, 8, duration=video.duration, seconds_per_feature=1 / FPS
        )
        expected = localizer.localize(
            clips[None],
            words,
            torch.tensor([5]),
            torch.tensor([7.5 / 8]),
            durations=torch.tensor([7.5]),
            num_inference_steps=3,
            top_n=4,
            generator=seeds(1),
        )
        times = [[one.start, one.end, one.score] for one in found.moments[0]]
        ranked = expected.ranked
        wanted = torch.cat([ranked.moments[0], ranked.scores[0][:, None]], dim=1)
        assert_close(torch.tensor(times), wanted[ranked.valid[0]])
        merged = expected.dense[0].masked_fill(~expected.mask, torch.nan)
        assert torch.equal(found.maps[0].isnan(), merged.isnan())
        assert_close(found.maps[0].nan_to_num(), merged.nan_to_num())
        assert found.clip_seconds == [7.5 / 8]
        assert found.durations == [7.5]
        assert found.steps is None
        assert found.moments[0][0].spread is None

    @pytest.mark.parametrize(
        ("parts", "clips"),
        [
            ({}, [8, 8, 8]),
            ({"clip_seconds": 0.5}, [20, 5, 38]),
            ({"durations": [8.0]}, [10, 8, 18]),
        ],
    )
    def test_do_not_depend_on_batches_or_company(self, parts, clips):
        pipe = make_pipe(**parts)
        pipe.set_progress_bar_config(disable=True)
        videos = [make_features(length, seed=length) for length in (40, 9, 75)]
        options = {"num_samples": 2, "num_inference_steps": 2}
        alone = [
            pipe(video, query, generator=seeds(1, index), **options)
            for index, (video, query) in enumerate(zip(videos, QUERIES, strict=True))
        ]
        for batch_size in (1, 2, 16):
            together = pipe(videos, QUERIES, generator=seeds(3), batch_size=batch_size, **options)
            for index, one in enumerate(alone):
                own = answer_of(together, index)
                assert_alike(own, one)
                assert own.durations == one.durations
        assert [len(one) for one in together.maps] == clips

    def test_moments_end_with_the_video(self):
        # 9 features last 2.25 s; the fifth clip of 0.5 s ends later.
        options = {"top_n": 50, "ranking": "nms", "nms_threshold": 1.0}
        found = make_pipe(clip_seconds=0.5)(make_features(9), "the door", **options)
        ends = {one.end for one in found.moments[0]}
        assert max(ends) == 2.25
        assert all(0 <= one.start < one.end for one in found.moments[0])
        assert len(found.moments[0]) == int((~found.maps[0].isnan()).sum())

    @pytest.mark.parametrize("ranking", ["nms", "expected-hits"])
    @pytest.mark.parametrize("clip_seconds", [None, 0.5])
    def test_spread_is_that_of_the_maps_of_the_samples(self, ranking, clip_seconds):
        localizer = make_localizer(objective="mse-rescaled")
        pipe = make_pipe(localizer, clip_seconds=clip_seconds)
        videos = [make_features(40), make_features(21, seed=1)]
        options = {"num_inference_steps": 2, "ranking": ranking}
        found = pipe(videos, QUERIES[:2], num_samples=5, generator=seeds(2), **options)
        # The same samples one by one: the generator keeps its state.
        going_on = seeds(2)
        maps = [
            pipe(videos, QUERIES[:2], num_samples=1, generator=going_on, **options).maps
            for _ in range(5)
        ]
        for index in range(2):
            stacked = torch.stack([one[index] for one in maps])
            spread, clip = stacked.std(dim=0), found.clip_seconds[index]
            for moment in found.moments[index]:
                first = round(moment.start / clip)
                last = first + max(1, -int(-(moment.end / clip - first - 1e-3) // 1))
                cell = spread[first, last - first - 1]
                assert moment.spread == pytest.approx(float(cell), rel=1e-3, abs=1e-6)
            # The mean over samples precedes the maximum over scales, so shared cells may be lower.
            lower = (stacked.mean(dim=0) - found.maps[index]).nan_to_num()
            assert float(lower.min()) > -1e-5
            assert float((lower < 1e-5).float().mean()) > 0.6

    def test_one_sentence_for_many_videos_and_one_video_for_many_sentences(self):
        pipe, videos = make_pipe(), [make_features(30), make_features(50, seed=1)]
        many = pipe(videos, QUERIES[0], generator=seeds(2))
        assert_alike(many, pipe(videos, [QUERIES[0]] * 2, generator=seeds(2)))
        many = pipe(videos[0], QUERIES, generator=seeds(3))
        assert_alike(many, pipe([videos[0]] * 3, QUERIES, generator=seeds(3)))

    def test_output_types(self):
        pipe, video = make_pipe(), make_features(30)
        options = {"num_samples": 3, "top_n": 40, "ranking": "nms"}
        moments = pipe(video, QUERIES, generator=seeds(3), **options)
        tensor = pipe(video, QUERIES, generator=seeds(3), output_type="pt", **options)
        array = pipe(video, QUERIES, generator=seeds(3), output_type="np", **options)
        assert tensor.moments.shape == (3, 40, 4)
        assert isinstance(array.moments, np.ndarray)
        assert isinstance(array.maps[0], np.ndarray)
        for row, listed in enumerate(moments.moments):
            assert 0 < len(listed) < 40
            for rank, one in enumerate(listed):
                own = torch.tensor([one.start, one.end, one.score, one.spread])
                assert_close(tensor.moments[row, rank], own)
            assert bool(tensor.moments[row, len(listed) :].isnan().all())
        np.testing.assert_array_equal(array.moments, tensor.moments.numpy())
        as_tuple = pipe(video, QUERIES, generator=seeds(3), return_dict=False, **options)
        assert as_tuple[0] == moments.moments
        assert len(as_tuple) == 4

    def test_tuples_have_all_that_is_asked_for(self, pipe):
        options = {"answer": "set", "pairs": "zip", "on_error": "skip", "generator": seeds(1)[0]}
        found = pipe(make_features(21), QUERIES[:1], return_dict=False, **options)
        presence, queries = found[-1], found[-2]
        assert 0 <= presence[0] <= 1
        assert queries == QUERIES[:1]
        assert found[4] == [None]  # errors

    @pytest.mark.parametrize("parts", [{}, {"clip_seconds": 0.5}, {"durations": [5.0]}], ids=str)
    def test_saliency_is_read_off_the_map(self, parts):
        localizer = make_localizer(objective="mse-rescaled")
        pipe = make_pipe(localizer, **parts)
        videos, sampling = [make_features(40), make_features(21, seed=1)], {"return_steps": True}
        found = pipe(videos, QUERIES[:2], generator=seeds(2), num_samples=1, **sampling)
        assert len(found.saliency) == 2
        for index, clips in enumerate(found.saliency):
            expected = dense_saliency(found.maps[index], localizer.objective.target)
            assert clips.tolist() == pytest.approx(expected, abs=1e-5)
            assert len(clips) == len(found.maps[index])
            last = found.steps.saliency()[index][-1]
            assert_close(last, clips)
        array = pipe(videos, QUERIES[:2], generator=seeds(2), num_samples=1, output_type="np")
        np.testing.assert_allclose(array.saliency[1:][0], found.saliency[1], atol=1e-6)

    def test_steps_are_the_maps_that_the_model_believed_in(self):
        pipe, seen = make_pipe(clip_seconds=0.5), []
        videos = [make_features(50), make_features(21, seed=1)]

        def watch(caller, index, timestep, maps):
            assert caller is pipe
            seen.append((index, timestep, maps["clean"].shape == maps["noisy"].shape))

        found = pipe(
            videos,
            QUERIES[:2],
            num_inference_steps=3,
            num_samples=2,
            return_steps=True,
            callback_on_step_end=watch,
            generator=seeds(2),
        )
        assert [index for index, _, _ in seen] == [0, 1, 2] * 2
        assert seen[0][1] == 999
        assert all(same for *_, same in seen)
        for index, video in enumerate(videos):
            clips = -(-len(video.features) // 2)
            assert found.steps[index].shape == (3, clips, clips)
            assert found.noisy_steps[index].shape == (3, clips, clips)
            # The last step's map is the answer.
            assert_close(found.steps[index][-1].nan_to_num(), found.maps[index].nan_to_num())
            assert bool((found.noisy_steps[index][0] < 0).any())

    @pytest.mark.parametrize("kind", [MS2DTAN, "deterministic"])
    def test_models_that_do_not_sample(self, kind):
        plain = kind == "deterministic"
        localizer = make_localizer(deterministic=True) if plain else make_localizer(kind)
        pipe, video = make_pipe(localizer), make_features(30)
        found = pipe(video, QUERIES, generator=seeds(3))
        assert_alike(found, pipe(video, QUERIES, num_inference_steps=1, num_samples=1))
        of_samples = {"num_samples": 3, "callback_on_step_end": print, "return_steps": True}
        for option, value in of_samples.items():
            text = f"expected a generative model for {option}, got {type(localizer).__name__}."
            with refuses(ArgumentError, text):
                pipe(video, QUERIES, **{option: value})

    def test_half_precision(self):
        pipe, video = make_pipe(), make_features(30)
        expected = pipe(video, QUERIES, generator=seeds(3), output_type="pt")
        pipe.to(torch.bfloat16)
        found = pipe(video, QUERIES, generator=seeds(3), output_type="pt")
        assert found.maps[0].dtype == torch.float32
        for index in range(3):
            error = (found.maps[index] - expected.maps[index]).nan_to_num().abs().max()
            assert 0 < float(error) < 0.1


class TestVideos:
    def test_all_forms_of_one_video(self, pipe, tmp_path):
        path = write_video(tmp_path / "one.mp4", make_pictures(16))
        expected = pipe(path, QUERIES, generator=seeds(3))
        assert expected.durations == [2.0] * 3
        content = path.read_bytes()
        features = pipe.encode_video(path)
        assert features.features.shape == (8, CHANNELS)
        for video in (str(path), content, io.BytesIO(content), features):
            assert_alike(pipe(video, QUERIES, generator=seeds(3)), expected)
        plain = features.features
        for video in (plain, plain.numpy(), plain.double()):
            assert_alike(pipe(video, QUERIES, generator=seeds(3)), expected)
        with path.open("rb") as file:
            assert_alike(pipe(file, QUERIES, generator=seeds(3)), expected)

    def test_pictures(self, pipe, frame_encoder):
        pictures = make_pictures(40)
        found = pipe(pictures, "the door", frame_rate=8, generator=seeds(1))
        # 4 features per second from 8 frames per second, each near the middle of its interval.
        features = frame_encoder.encode(pictures[1::2])
        assert_alike(found, pipe(features, "the door", generator=seeds(1)))
        both = ["the door"] * 2
        several = pipe([pictures, features], both, frame_rate=8, generator=seeds(1) + seeds(1))
        assert_alike(several, pipe([features] * 2, both, generator=seeds(1) + seeds(1)))
        with refuses(ArgumentError, "expected the frame_rate of the frames, got none."):
            pipe(pictures, "the door")

    def test_a_file_is_encoded_once_while_it_stays(
        self, pipe, frame_encoder, tmp_path, monkeypatch
    ):
        calls = []
        handle = frame_encoder.register_forward_hook(lambda *_: calls.append(1))
        try:
            path = write_video(tmp_path / "one.mp4", make_pictures(4))
            first = pipe(path, QUERIES, generator=seeds(3))
            assert calls == [1]
            monkeypatch.chdir(tmp_path)
            assert_alike(pipe("one.mp4", QUERIES, generator=seeds(3)), first)
            pipe(["one.mp4", path, str(path)], QUERIES)
            assert calls == [1]
            write_video(path, make_pictures(8, seed=1))
            assert pipe(path, "the door").durations == [1.0]
            assert calls == [1, 1]
            for index in range(8):  # as many as are kept
                pipe.encode_video(shutil.copy(path, tmp_path / f"{index}.mp4"))
            before = len(calls)
            pipe.encode_video(path)  # evicted by newer ones
            assert len(calls) == before + 1
        finally:
            handle.remove()

    def test_a_file_is_encoded_again_by_another_encoder(self, frame_encoder, tmp_path):
        path = write_video(tmp_path / "one.mp4", make_pictures(4))
        pipe = make_pipe(frame_encoder=copy.deepcopy(frame_encoder), fps=4.0)
        first = pipe.encode_video(path).features
        assert torch.equal(pipe.encode_video(path).features, first)
        with torch.no_grad():
            for weight in pipe.frame_encoder.parameters():
                weight.mul_(0.5)
        second = pipe.encode_video(path).features
        assert not torch.equal(second, first)
        pipe.frame_encoder = copy.deepcopy(frame_encoder)
        assert torch.equal(pipe.encode_video(path).features, first)
        pipe.register_to_config(fps=2.0)
        assert len(pipe.encode_video(path).features) == len(first) // 2
        with refuses(ArgumentError, "expected frame_rate only for frames, got 8."):
            pipe(first, "the door", frame_rate=8)  # of features, it would be ignored

    def test_a_damaged_file_is_told(self, pipe, tmp_path):
        whole = write_mkv(tmp_path / "cut.mkv", range(40)).read_bytes()
        (tmp_path / "cut.mkv").write_bytes(whole[: len(whole) // 2])
        with pytest.warns(UserWarning, match=r"cut\.mkv: part of it is damaged: it ends at"):
            found = pipe(tmp_path / "cut.mkv", "the door")
        assert found.durations[0] < 40

    def test_the_real_video(self, pipe, data_root):
        found = pipe(data_root / "video" / "nasa_13013.mp4", QUERIES[0])
        assert found.durations == pytest.approx([13.0], abs=0.1)
        assert 0 <= found.moments[0][0].start < found.moments[0][0].end <= found.durations[0]

    def test_features_that_do_not_fit(self):
        pipe = make_pipe()
        with refuses(FeatureError, "T >= 1, got (0, 96)."):
            pipe(torch.zeros(0, CHANNELS), "the door")
        with refuses(ConfigError, "expected features of the video, got str. For videos, pass fra"):
            pipe("one.mp4", "the door")
        with refuses(ArgumentError, "the pipeline's fps for features that are a tensor, got none."):
            make_pipe(fps=None)(torch.zeros(3, CHANNELS), "the door")


class TestArguments:
    def test_videos_and_queries(self):
        for videos, query, text in (
            (2, ["a"] * 3, "one video, or one for each of the 3 queries, got 2 videos."),
            (0, "a", "expected the number of video to be an integer >= 1, got 0."),
            (1, [], "expected the number of query to be an integer >= 1, got 0."),
            (1, ["a", ""], "expected a sentence with a word, got ''."),
            (1, "?!", "expected a sentence with a word, got '?!'."),
        ):
            with refuses(ArgumentError, text):
                make_pipe()([make_features(30)] * videos, query)

    def test_bad_options(self):
        for kind, options, text in (
            (ConfigError, {"output_type": "pil"}, "output_type to be one of moments, pt, np"),
            (ArgumentError, {"batch_size": 0}, "batch_size to be an integer >= 1, got 0."),
            (ArgumentError, {"top_n": 0}, "top_n to be an integer >= 1, got 0."),
            (ArgumentError, {"num_samples": 0}, "num_samples to be an integer >= 1, got 0."),
            (ArgumentError, {"num_inference_steps": 0}, "num_inference_steps to be an integer"),
            (ConfigError, {"ranking": "best"}, "ranking to be one of nms, expected-hits"),
            (ConfigError, {"answer": "some"}, "answer"),
            (ArgumentError, {"temperature": 2, "ranking": "nms"}, "no temperature with ranking"),
            (ArgumentError, {"temperature": 0, "ranking": "expected-hits"}, "in (0, inf), got 0."),
            (ArgumentError, {"hit_thresholds": [2], "ranking": "expected-hits"}, "in [0, 1], got"),
        ):
            with refuses(kind, text):
                make_pipe()(make_features(30), "the door", **options)

    def test_parts_that_do_not_fit(self, frame_encoder):
        few, frames = Vocabulary(WORDS[:3]), {"frame_encoder": frame_encoder}
        narrow = {"localizer": make_localizer(encoder={"clip_channels": 9})}
        expected = "expected a frame_encoder with 9 numbers per frame, got 96 from timm test_resnet"
        for parts, text in (
            (frames | {"fps": None}, "expected fps with a frame_encoder, got none."),
            (frames | narrow, expected),
            ({"vocabulary": None}, "expected a vocabulary with the model's 7 words, and"),
            ({"vocabulary": few}, "for sentences, got Vocabulary with 5 words."),
            ({"fps": 0}, "expected fps in (0, 1000], got 0."),
            ({"clip_seconds": -1}, "expected clip_seconds in (0, inf), got -1."),
        ):
            with refuses(TmapdiffError, text):
                make_pipe(**parts)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "pipeline"
    make_pipe().save_pretrained(folder)
    return folder


class TestSaving:
    def test_round_trip(self, pipe, tmp_path):
        path = write_video(tmp_path / "one.mp4", make_pictures(20))
        expected = pipe(path, QUERIES, generator=seeds(3))
        pipe.save_pretrained(tmp_path / "saved")
        index = json.loads((tmp_path / "saved" / "model_index.json").read_text())
        assert index["_class_name"] == "MomentLocalizationPipeline"
        assert index["localizer"] == ["tmapdiff", "MomentLocalizer"]
        assert index["text_encoder"] == [None, None]
        read = MomentLocalizationPipeline.from_pretrained(tmp_path / "saved")
        assert_alike(read(path, QUERIES, generator=seeds(3)), expected)
        assert not read.localizer.training
        assert read.config.fps == FPS
        assert read.name_or_path == str(tmp_path / "saved")
        assert read.frame_encoder.fingerprint == pipe.frame_encoder.fingerprint
        assert read.frame_encoder.description == pipe.frame_encoder.description
        assert set(read.components) == {
            "localizer", "vocabulary", "frame_encoder", "text_encoder",
        }  # fmt: skip

    @pytest.mark.parametrize(
        ("before", "now"),
        [("in shards", "whole"), ("whole", "in shards"), ("with all parts", "whole"),
         ("the baseline", "whole")],
    )  # fmt: skip
    def test_what_was_saved_last_is_loaded(self, pipe, tmp_path, before, now):
        kinds = {
            "in shards": lambda: make_pipe(make_localizer(seed=1), fps=2.0),
            "whole": lambda: make_pipe(make_localizer(seed=1), fps=2.0),
            "with all parts": lambda: pipe,
            "the baseline": lambda: make_pipe(make_localizer(MS2DTAN, seed=1), clip_seconds=2.0),
        }
        sizes = {"in shards": {"max_shard_size": "10KB"}}
        folder = tmp_path / "saved"
        kinds[before]().save_pretrained(folder, **sizes.get(before, {}))
        mine = [folder / "README.md", folder / "localizer" / "notes.txt"]
        for file in mine:
            file.write_text("mine")
        saved = make_pipe(make_localizer(seed=2))
        saved.save_pretrained(folder, **sizes.get(now, {}))
        saved.save_pretrained(tmp_path / "alone", **sizes.get(now, {}))
        assert names(folder) == names(tmp_path / "alone") | {"README.md", "localizer/notes.txt"}
        assert all(file.read_text() == "mine" for file in mine)
        read = MomentLocalizationPipeline.from_pretrained(folder)
        video = make_features(30)
        expected = saved(video, QUERIES, generator=seeds(3))
        assert_alike(read(video, QUERIES, generator=seeds(3)), expected)
        assert read.frame_encoder is None
        assert (read.config.fps, read.config.clip_seconds) == (FPS, None)

    def test_a_save_that_is_killed_leaves_one_pipeline_or_none(self, tmp_path, monkeypatch):
        folder, states = tmp_path / "saved", tmp_path / "states"
        first = make_pipe(make_localizer(seed=1), fps=2.0)
        second = make_pipe(make_localizer(seed=2))
        first.save_pretrained(folder, max_shard_size="20KB")
        replace = os.replace

        def watched(source, place):
            # The state that a process killed here would leave.
            shutil.copytree(folder, states / f"{len(list(states.iterdir())):03}")
            replace(source, place)

        states.mkdir()
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", watched)
            second.save_pretrained(folder)

        def loads(load, place):
            try:
                return load(place)
            except CheckpointError:
                return None

        def is_of(pipe, localizer):
            other = localizer.state_dict()
            return all(torch.equal(one, other[k]) for k, one in pipe.localizer.state_dict().items())

        found = []
        for state in sorted(states.iterdir()):
            read = loads(MomentLocalizationPipeline.from_pretrained, state)
            found.append(None if read is None else read.config.fps)
            if read is not None:
                assert is_of(first if read.config.fps == 2.0 else second, read.localizer)
            localizer = loads(MomentLocalizer.from_pretrained, state / "localizer")
            assert localizer is None or is_of(first, localizer) or is_of(second, localizer)
        assert found[0] == 2.0
        assert set(found[4:]) == {None}
        assert MomentLocalizationPipeline.from_pretrained(folder).config.fps == FPS

    @pytest.mark.parametrize("nth", [1, 2, 5, 8, 10])
    def test_a_save_that_fails_leaves_the_pipeline_before(self, tmp_path, monkeypatch, nth):
        folder, moved = tmp_path / "saved", []
        make_pipe(make_localizer(seed=1)).save_pretrained(folder, max_shard_size="20KB")
        before = {name: (folder / name).read_bytes() for name in names(folder)}
        replace = os.replace

        def failing(source, place):
            if folder in (*source.parents, *place.parents):
                moved.append(source)
                if len(moved) == nth:
                    raise OSError(28, "No space left on device")
            replace(source, place)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", failing)
            with refuses(FileError, f"cannot write {folder}: No space left on device."):
                make_pipe(make_localizer(seed=2)).save_pretrained(folder)
        assert {name: (folder / name).read_bytes() for name in names(folder)} == before
        assert [path.name for path in tmp_path.iterdir()] == ["saved"]

    def test_weights_that_would_not_be_loaded_are_not_saved(self, tmp_path):
        for option in ({"safe_serialization": False}, {"use_flashpack": True}, {"variant": "fp16"}):
            with refuses(ArgumentError, "MomentLocalizationPipeline: expected "):
                make_pipe().save_pretrained(tmp_path / "saved", **option)
            assert not (tmp_path / "saved").exists()

    def test_the_baseline_and_clip_seconds(self, tmp_path):
        pipe = make_pipe(make_localizer(MS2DTAN), clip_seconds=0.5, fps=None)
        pipe.save_pretrained(tmp_path / "saved")
        read = MomentLocalizationPipeline.from_pretrained(tmp_path / "saved")
        assert isinstance(read.localizer, MS2DTAN)
        assert (read.config.fps, read.config.clip_seconds) == (None, 0.5)

    def test_parts_can_be_replaced(self, pipe, tmp_path):
        pipe.save_pretrained(tmp_path / "saved")
        other = make_localizer(seed=1)
        read = MomentLocalizationPipeline.from_pretrained(
            tmp_path / "saved", localizer=other, frame_encoder=None, clip_seconds=1.0
        )
        assert read.localizer is other
        assert read.frame_encoder is None
        assert (read.config.fps, read.config.clip_seconds) == (FPS, 1.0)
        read = MomentLocalizationPipeline.from_pretrained(
            tmp_path / "saved", torch_dtype=torch.bfloat16
        )
        assert read.localizer.dtype == torch.bfloat16

    def test_another_scheduler_is_set_as_in_diffusers_and_saved(self, tmp_path):
        pipe, video, options = make_pipe(), make_features(30), {"num_inference_steps": 4}
        pipe.scheduler = MapScheduler.from_config(pipe.scheduler.config, solver="unipc")
        assert pipe.scheduler is pipe.localizer.scheduler
        twin = make_pipe(make_localizer(scheduler_config={"solver": "unipc"}))
        expected = twin(video, QUERIES, generator=seeds(3), **options)
        pipe.save_pretrained(tmp_path / "saved")
        read = MomentLocalizationPipeline.from_pretrained(tmp_path / "saved")
        for one in (pipe, read):
            assert one.scheduler.config.solver == "unipc"
            assert_alike(one(video, QUERIES, generator=seeds(3), **options), expected)
        with refuses(ArgumentError, "expected a MapScheduler, got str."):
            pipe.scheduler = "unipc"
        baseline = make_pipe(make_localizer(MS2DTAN))
        assert baseline.scheduler is None
        with refuses(ArgumentError, "expected a generative model to set a scheduler, got MS2DTAN."):
            baseline.scheduler = MapScheduler()

    def test_sentences_by_transformers(self, tmp_path):
        text = tiny_text_encoder(WORDS)
        localizer = make_localizer(encoder={"text_channels": 16, "vocabulary_size": None})
        pipe = make_pipe(localizer, vocabulary=None, text_encoder=text)
        expected = pipe(make_features(30), QUERIES, generator=seeds(3))
        encoded = pipe.encode_queries(QUERIES)
        for query, one in zip(QUERIES, encoded, strict=True):
            assert_close(one, text([query]).tokens[0])
        assert len({one.untyped_storage().nbytes() for one in encoded}) == len(QUERIES)
        with refuses(ArgumentError, "expected a list of queries, got 'the door'."):
            pipe.encode_queries("the door")
        pipe.save_pretrained(tmp_path / "saved")
        read = MomentLocalizationPipeline.from_pretrained(tmp_path / "saved")
        assert_alike(read(make_features(30), QUERIES, generator=seeds(3)), expected)
        other = make_localizer(encoder={"text_channels": 9, "vocabulary_size": None})
        both, none = {"text_encoder": text}, {"vocabulary": None}
        for model, parts, expected in (
            (localizer, none, "only the text_encoder that the model was trained with, got none."),
            (localizer, both, "was trained with, got Vocabulary and TransformersTextEncoder."),
            (None, both, "got Vocabulary and TransformersTextEncoder with 7 words."),
            (other, both | none, "with 9 channels, got 16 of tokens and 16 of sentence."),
        ):
            with refuses(ConfigError, expected):
                make_pipe(model, **parts)

    def test_what_a_text_encoder_reads_is_known(self):
        localizer = make_localizer(encoder={"text_channels": 16, "vocabulary_size": None})
        pipe = make_pipe(localizer, vocabulary=None, text_encoder=tiny_text_encoder(WORDS))
        assert pipe.unknown_words("el perro ladra") == []
        assert pipe(make_features(30), "el perro ladra").moments[0]

    def test_an_index_that_cannot_be_loaded(self, saved):
        wrong = [
            ("_class_name", "StableDiffusionPipeline", "it is a StableDiffusionPipeline."),
            ("localizer", ["os", "system"], "its localizer to be a MomentLocalizer or"),
            ("localizer", ["tmapdiff", "FrameEncoder"], "got ['tmapdiff', 'FrameEncoder']"),
            ("localizer", None, f"cannot load {saved}: it has no localizer."),
            ("fps", -1, "expected fps in (0, 1000], got -1"),
            ("vocabulary", [None, None], "cannot load"),
        ]
        entries = ["x", 1, {"tmapdiff": "MomentLocalizer"}, [], ["tmapdiff", None]]
        entries += [[None, "Vocabulary"], ["tmapdiff", ["x"]], ["tmapdiff", "Vocabulary", "x"]]
        parts = cycle(["localizer", "vocabulary", "frame_encoder", "text_encoder"])
        for one, field in zip(entries, parts, strict=False):
            text = f"expected its {field} to be a ", f"of tmapdiff, got {one!r}."
            wrong.append((field, one, *text))
        for field in ("fps", "clip_seconds", "_class_name"):
            values = ("x", [1], {}, float("nan"), 0, True)
            wrong += [(field, value, f"cannot load {saved}: ") for value in values]
        for field, value, *texts in wrong:
            with index_with(saved, **{field: value}), refuses(CheckpointError, *texts):
                MomentLocalizationPipeline.from_pretrained(saved)

    def test_what_cannot_be_loaded(self, pipe, tmp_path):
        folder = tmp_path / "saved"
        load = MomentLocalizationPipeline.from_pretrained
        pipe.save_pretrained(folder)
        index = (folder / "model_index.json").read_text()
        (folder / "model_index.json").write_text("[]")
        with refuses(CheckpointError, "model_index.json is not a JSON object."):
            load(folder)
        (folder / "model_index.json").unlink()
        with refuses(CheckpointError, "model_index.json: No such file or directory."):
            load(folder)
        with refuses(CheckpointError, "there is no such folder."):
            load(tmp_path / "none")
        (folder / "model_index.json").write_text(index)
        with refuses(ArgumentError, "unknown argument revison."):
            load(folder, revison="main")
        weights = folder / "frame_encoder" / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:1000])
        with refuses(CheckpointError, "FrameEncoder: cannot load"):
            load(folder)
        assert load(folder, frame_encoder=None).frame_encoder is None
        with refuses(FileError, "expected a folder to save in"):
            pipe.save_pretrained(folder / "model_index.json")


def test_a_moment_says_what_it_is():
    assert str(LocalizedMoment(1.0, 2.54, 0.876)) == "1.0 to 2.5 s (score 0.88)"
    assert str(LocalizedMoment(1.0, 2.54, 0.876, 0.02)) == "1.0 to 2.5 s (score 0.88 ± 0.02)"


def test_a_folder_that_is_missing_is_not_only_the_hub_s_error(monkeypatch):
    # It could be a name on the hub, which is unavailable here.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with refuses(CheckpointError, "there is no such folder here, and the hub failed: "):
        MomentLocalizationPipeline.from_pretrained("runs/pipeline")
