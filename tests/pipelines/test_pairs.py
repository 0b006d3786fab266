import pytest
import torch
from helpers.assertions import refuses
from helpers.pipelines import QUERIES, assert_alike, make_features, make_pictures, make_pipe, seeds
from helpers.pipelines import write_video as write

from tmapdiff import FrameEncoder
from tmapdiff.errors import ArgumentError, ConfigError, FileError

VIDEOS = [make_features(30), make_features(50, seed=1)]


@pytest.mark.parametrize("batch_size", [1, 4, 16])
def test_every_query_of_every_video(batch_size):
    pipe = make_pipe()
    found = pipe(VIDEOS, QUERIES, pairs="product", batch_size=batch_size, generator=seeds(6))
    assert found.queries == QUERIES * 2
    assert [id(one) for one in found.videos] == [id(one) for one in VIDEOS for _ in QUERIES]
    for index, video in enumerate(VIDEOS):
        alone = pipe(video, QUERIES, generator=seeds(3, 3 * index))
        part = slice(3 * index, 3 * index + 3)
        for mine, other in zip(found.moments[part], alone.moments, strict=True):
            assert [one.start for one in mine] == pytest.approx([one.start for one in other])
    assert alone.videos is None


def test_one_of_each():
    pipe = make_pipe()
    found = pipe(VIDEOS, QUERIES[:2], pairs="zip", generator=seeds(2))
    assert_alike(found, pipe(VIDEOS, QUERIES[:2], generator=seeds(2)))
    with refuses(ArgumentError, "expected one video, or one for each of the 3 queries, got 2 v"):
        pipe(VIDEOS, QUERIES, pairs="zip")
    with refuses(ArgumentError, "got 1 videos"):
        pipe(VIDEOS[:1], QUERIES, pairs="zip")
    with refuses(ConfigError, "expected pairs to be one of product, zip, got 'all'."):
        pipe(VIDEOS, QUERIES, pairs="all")


def test_a_folder(tmp_path):
    pipe = make_pipe(frame_encoder=FrameEncoder("test_resnet", pretrained=False))
    for index, name in enumerate(("b.mp4", "a.mp4")):
        write(tmp_path / name, make_pictures(16, index))
    (tmp_path / "notes.txt").touch()
    found = pipe(tmp_path, QUERIES[:2], generator=seeds(4))
    names = [one.name for one in found.videos]
    assert (names, found.queries) == (["a.mp4"] * 2 + ["b.mp4"] * 2, QUERIES[:2] * 2)
    alone = pipe(tmp_path / "b.mp4", QUERIES[:2], generator=seeds(2, 2))
    torch.testing.assert_close(found.maps[3], alone.maps[1], equal_nan=True)
    found = pipe(str(tmp_path), QUERIES[:2], pairs="zip", generator=seeds(2))
    assert [one.name for one in found.videos] == ["a.mp4", "b.mp4"]
    with refuses(FileError, "expected videos in"):
        (tmp_path / "empty").mkdir()
        pipe(tmp_path / "empty", QUERIES)
