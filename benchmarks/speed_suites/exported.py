"""Exported graphs in onnxruntime compared with the library in torch: maps from clips and words.

Weights and words are random, videos fill the grid; both run in one process with as many threads.
"""

import tempfile
from collections.abc import Iterator
from functools import lru_cache, partial
from types import SimpleNamespace
from typing import Any

import torch
from speed_cases import Candidate, Case, Contest, TimedCase

from speed_suites.setting import DATA_SIZES, WORDS, Setting, find_preset, inference
from tmapdiff.export import OnnxLocalizer, export_pipeline
from tmapdiff.presets import DECODERS

KINDS = ("conv", "transformer", "ms2dtan", "similarity", "aligned")


def cases(setting: Setting) -> Iterator[Case]:
    """Measure each kind of model, with single queries and batches."""
    name = setting.preset or ("nano" if setting.quick else "tiny")
    for kind in KINDS:
        for batch in setting.batch_sizes(gpu=(1, 16), cpu=(1, 16)):
            shape = {"preset": "aligned" if kind == "aligned" else name, "batch": batch}
            build = partial(_contest, kind, shape["preset"], batch)
            yield TimedCase("export", kind, shape, torch.float32, build, reference="torch")


def make_model(kind: str, preset: str) -> Any:
    """Make a model with random weights, none of them zero."""
    torch.manual_seed(0)
    sizes, channels = find_preset(preset), DATA_SIZES["clip_channels"]
    if kind == "similarity":
        return sizes.build_similarity(clip_channels=channels).eval()
    if kind == "ms2dtan":
        return sizes.build_ms2dtan(**DATA_SIZES).eval()
    decoder = {"transformer": DECODERS["transformer-concat"]}.get(kind)
    words = None if kind == "aligned" else DATA_SIZES["vocabulary_size"]
    model = sizes.build(vocabulary_size=words, clip_channels=channels, decoder=decoder).eval()
    for one in model.parameters():
        if not one.any():
            torch.nn.init.normal_(one, std=0.02)
    return model


@lru_cache(maxsize=1)
def _exported(kind: str, preset: str) -> tuple[Any, OnnxLocalizer]:
    model = make_model(kind, preset)
    config = SimpleNamespace(fps=None, clip_seconds=None, durations=None)
    pipeline: Any = SimpleNamespace(localizer=model, vocabulary=None, config=config)
    with tempfile.TemporaryDirectory() as folder:
        export_pipeline(pipeline, folder, format="onnx", max_words=WORDS)
        return model, OnnxLocalizer(folder, threads=torch.get_num_threads())


def _contest(kind: str, preset: str, batch: int) -> Contest:
    model, exported = _exported(kind, preset)
    inputs = [_draw(model, batch) for _ in range(3)]
    arrays = [tuple(one.numpy() for one in given) for given in inputs]

    def in_torch(given: Any) -> Any:
        generator = [torch.Generator().manual_seed(0) for _ in range(batch)]
        sampling = {"generator": generator} if "scheduler" in exported.info else {}
        return model.predict_maps(*given, **sampling)

    def in_onnxruntime(given: Any) -> Any:
        return exported.predict_maps(*given)

    return Contest(
        [
            Candidate("torch", in_torch, inputs, partial(inference, ""), items=batch),
            Candidate("onnxruntime", in_onnxruntime, arrays, items=batch),
        ]
    )


def _draw(model: Any, batch: int) -> tuple[torch.Tensor, ...]:
    config, clips = model.encoder.config, model.grid.num_clips
    words = torch.randint(2, DATA_SIZES["vocabulary_size"], (batch, WORDS))
    if config.text_channels is not None:
        words = torch.randn(batch, WORDS, config.text_channels)
    features = torch.randn(batch, clips * config.features_per_clip, config.clip_channels)
    return features, words, torch.full((batch,), WORDS), torch.full((batch,), clips)
