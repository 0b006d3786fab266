"""Pipelines of random weights, and what they are asked."""

import json
from contextlib import contextmanager
from fractions import Fraction

import numpy as np
import pytest
import torch
from helpers import videos
from helpers.assertions import assert_close
from helpers.fields import GRID

from tmapdiff import (
    MS2DTAN,
    FrameEncoder,
    MomentLocalizationPipeline,
    MomentLocalizer,
    Vocabulary,
)
from tmapdiff.video import VideoFeatures

WORDS = ["a", "person", "opens", "the", "door"]
QUERIES = ["a person opens the door", "the door", "person"]
CHANNELS = 96  # of test_resnet's features
FPS = 4.0


def make_localizer(kind=MomentLocalizer, seed=0, **fields):
    torch.manual_seed(seed)
    encoder = {
        **GRID,
        "vocabulary_size": len(WORDS) + 2,
        "clip_channels": CHANNELS,
        "word_channels": 8,
        "channels": 8,
        "num_text_layers": 1,
        **fields.pop("encoder", {}),
    }
    if kind is MS2DTAN:
        model = MS2DTAN(encoder_config=encoder, kernel_sizes=[3], **fields)
    else:
        decoder = {**GRID, "feature_channels": 8, "channels": 8, "time_channels": 8}
        decoder |= {"kernel_sizes": [3], **fields.pop("decoder", {})}
        model = MomentLocalizer(encoder_config=encoder, decoder_config=decoder, **fields)
    for one in model.parameters():  # what starts at zero must count, too
        torch.nn.init.normal_(one, std=0.3)
    return model.eval()


def make_frame_encoder(seed=0, **options):
    torch.manual_seed(seed)
    return FrameEncoder("test_resnet", **{"pretrained": False, **options})


def make_pipe(localizer=None, **parts):
    parts = {"vocabulary": Vocabulary(WORDS), "fps": FPS, **parts}
    return MomentLocalizationPipeline(localizer or make_localizer(), **parts)


def make_features(length, seed=0, channels=CHANNELS):
    features = torch.randn(length, channels, generator=torch.Generator().manual_seed(seed))
    return VideoFeatures(features, 1 / FPS, length / FPS)


def make_pictures(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 24, 32, 3), dtype=np.uint8)


def seeds(count, first=0):
    return [torch.Generator().manual_seed(first + index) for index in range(count)]


def write_video(path, pictures, rate=8):
    period = Fraction(1, rate)
    times = videos.evenly(len(pictures), period=period)
    options = {"format": "mp4", "codec": "mpeg4", "time_base": period, "rate": rate}
    return videos.write_video(path, times, images=pictures, **options)


@contextmanager
def index_with(folder, **fields):
    """Change fields of a saved pipeline's index meanwhile."""
    path = folder / "model_index.json"
    text = path.read_text()
    path.write_text(json.dumps(json.loads(text) | fields))
    yield
    path.write_text(text)


def answer_of(found, index):
    """One query's part of an output."""
    part = slice(index, index + 1)
    return type(found)(
        moments=found.moments[part],
        maps=found.maps[part],
        clip_seconds=found.clip_seconds[part],
        durations=found.durations[part],
    )


def assert_alike(actual, expected):
    """Two answers of the same queries, up to rounding."""
    for mine, other in zip(actual.moments, expected.moments, strict=True):
        assert len(mine) == len(other)
        for one, two in zip(mine, other, strict=True):
            assert (one.start, one.end) == pytest.approx((two.start, two.end))
            assert one.score == pytest.approx(two.score, rel=1e-3)
            assert (one.spread is None) == (two.spread is None)
            if one.spread is not None:
                assert one.spread == pytest.approx(two.spread, rel=1e-3, abs=1e-5)
    for mine, other in zip(actual.maps, expected.maps, strict=True):
        assert torch.equal(mine.isnan(), other.isnan())
        assert_close(mine.nan_to_num(), other.nan_to_num())
