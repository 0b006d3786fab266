import os
from contextlib import suppress
from dataclasses import replace
from functools import partial

import pytest
import torch
from peaks import peak_bytes
from speed_cases import Bench, Ceilings
from speed_suites import SUITES
from speed_suites.denoising import peer_candidates
from speed_suites.floors import (
    all_transforms,
    conv_floor,
    decoder_floor,
    direct_work,
    spectral_work,
    total,
)
from speed_suites.setting import (
    AUTO,
    REFERENCE,
    Setting,
    backends,
    inference,
    make_localizer,
    make_peer,
    map_features,
)
from timing import CpuClock, Effort

from tmapdiff.kernels._dispatch import BACKEND_VARIABLE
from tmapdiff.kernels.map_conv.costs import ConvSizes

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
H100 = Ceilings(3.0e12, {torch.bfloat16: 750e12})


def paper_sizes(batch):
    return [
        ConvSizes(batch, channels, 512, rows, 16, 17, torch.bfloat16, "cuda")
        for rows in (64, 32, 16)
        for channels in (1024, 512)
    ]


# Floors.


# Milliseconds of the paper's step on an H100, computed independently for fewer tile lengths: the
# best of all lengths is lower, most so if reading the kernel's spectra dominates.
@pytest.mark.parametrize(
    ("batch", "direct", "spectral"),
    [(1, 1.086, 0.871), (8, 8.69, 1.204), (32, 34.8, 1.873), (64, 69.5, 2.561)],
)
def test_floors_of_the_paper(batch, direct, spectral):
    sizes = paper_sizes(batch)
    works = [direct_work(one) for one in sizes]
    seconds = sum(H100.seconds(one.operations, one.bytes_moved, torch.bfloat16) for one in works)
    assert seconds * 1e3 == pytest.approx(direct, rel=0.02)
    floor = sum(conv_floor(one, H100) for one in sizes)
    assert 0.75 * spectral < floor * 1e3 < spectral


def test_products_of_spectra_are_counted_as_they_are_done():
    sizes = ConvSizes(2, 3, 4, 16, 8, 5, torch.float32, "cpu")
    for transform in all_transforms(sizes):
        forward, product, backward = spectral_work(sizes, transform)
        rows = 2 * transform.num_tiles
        spectra = torch.zeros(transform.num_frequencies, rows, 3, dtype=torch.complex64)
        kernel = torch.zeros(transform.num_frequencies, 3, 4, dtype=torch.complex64)
        result = spectra @ kernel
        # A complex multiplication and addition is 8 operations.
        assert product.operations == 8 * result.numel() * 3
        assert product.bytes_moved == spectra.nbytes + kernel.nbytes + result.nbytes
        whole = total(forward, product, backward)
        assert whole.operations > product.operations
        assert whole.bytes_moved == sum(one.bytes_moved for one in (forward, product, backward))
    assert {one.tile for one in all_transforms(sizes)} >= {16, 8, 4, 2, 1}


def test_the_decoder_costs_more_than_its_convolutions_and_grows_with_the_batch():
    decoder = make_localizer("stack16", CPU, torch.float32).decoder
    ceilings = Ceilings(1e10, {torch.float32: 1e11})
    setting = Setting(CPU, [torch.float32])
    floors = [
        decoder_floor(setting, "stack16", batch, torch.float32, ceilings) for batch in (1, 8, 64)
    ]
    convs = sum(
        conv_floor(ConvSizes(8, layer.in_channels, 17, *shape, 17, torch.float32, "cpu"), ceilings)
        for shape, one in zip(decoder.grid.shapes, decoder.decoders, strict=True)
        for layer in one.convs
    )
    assert floors[0] < floors[1] < floors[2]
    assert convs < floors[1] < 10 * convs


# Settings.


def test_suites_choose_sizes_unless_they_are_asked_for():
    full = Setting(CPU, [torch.float32])
    quick = Setting(CPU, [torch.float32], quick=True)
    asked = Setting(CPU, [torch.float32], [3], "nano", quick=True)
    gpu = Setting(CUDA, [torch.float32])
    names = [one.preset_name(cpu="tiny") for one in (full, quick, asked, gpu)]
    assert names == ["tiny", "stack16", "nano", "paper"]
    batches = [one.batch_sizes(gpu=(64,), cpu=(8,)) for one in (full, quick, asked, gpu)]
    assert [list(one) for one in batches] == [[8], [2], [3], [64]]


def test_backends_replace_the_users_and_give_them_back(monkeypatch):
    monkeypatch.setenv(BACKEND_VARIABLE, "reference")
    with backends(AUTO):
        assert BACKEND_VARIABLE not in os.environ
    with suppress(KeyError), backends("map_conv=direct"):
        assert os.environ[BACKEND_VARIABLE] == "map_conv=direct"
        raise KeyError
    assert os.environ[BACKEND_VARIABLE] == "reference"
    monkeypatch.delenv(BACKEND_VARIABLE)
    with backends("map_conv=direct"):
        pass
    assert BACKEND_VARIABLE not in os.environ


def test_nothing_is_zero():
    model = make_localizer("nano", CPU, torch.float32)
    assert all(bool(one.any()) for one in model.parameters())
    features = map_features(Setting(CPU, [torch.float32]), model.grid, 32, 2, torch.float32)
    for scale, one in enumerate(features):
        norms = one.norm(dim=1)
        assert torch.allclose(norms, model.grid.mask(scale).float().expand_as(norms))


# Comparisons.


def test_the_peer_passes_as_the_model_does(monkeypatch):
    setting = Setting(CPU, [torch.float32])
    model = make_peer("nano", CPU, torch.float32)
    features = map_features(setting, model.grid, 32, 2, torch.float32)
    clips = torch.randn(2, model.grid.num_clips, model.encoder.config.clip_channels)
    with inference(REFERENCE):
        monkeypatch.setattr(model.encoder, "forward", lambda *arguments: features)
        expected = model.score(clips, torch.ones(2, 3, dtype=torch.long), torch.tensor([3, 3]))
    for candidate in peer_candidates(setting, "nano", [features], torch.float32):
        with candidate.scope():
            for one, truth in zip(candidate.run(features), expected, strict=True):
                torch.testing.assert_close(one, truth, rtol=1e-4, atol=1e-5)


@pytest.mark.process
@pytest.mark.train
def test_another_checkout_trains_and_samples_in_processes_of_its_own(tmp_path):
    setting = Setting(CPU, [torch.float32], [4], "nano", compiled=False, quick=True)
    bench = Bench(CPU, CpuClock(), Effort(rounds=1, seconds=0), H100)
    (tmp_path / "tmapdiff.py").write_text("raise SystemExit(3)")
    _, *cases = SUITES["training"](replace(setting, baseline=tmp_path, cpu_time=True))
    assert [one.name.split()[0] for one in cases] == ["epoch", "ten-step"]
    for case in cases:
        contest = case.build()
        broken, ours = contest.candidates
        assert (broken.backend, ours.backend) == ("baseline", "auto")
        assert 0 < ours.run(ours.inputs[0]) < 60
    assert case.measure(bench)[-1].error == f"RuntimeError: {tmp_path.name}: exit status 3"


def test_sampling_keeps_nothing_of_a_step():
    setting = Setting(CPU, [torch.float32])
    model = make_localizer("nano", CPU, torch.float32)
    features = map_features(setting, model.grid, 32, 8, torch.float32)

    def sample(steps):
        with inference(AUTO):
            model.sample_maps(features, num_inference_steps=steps)

    one, ten = (peak_bytes(partial(sample, steps), CPU) for steps in (1, 10))
    map_bytes = 8 * model.grid.num_cells * 4
    assert ten - one < 9 * map_bytes
