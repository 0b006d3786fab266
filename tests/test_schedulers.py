import copy
import pickle

import pytest
import torch
from diffusers import DDIMScheduler
from helpers.assertions import refuses

from tmapdiff import IoUMapBuilder, MapGrid, MapScheduler
from tmapdiff.errors import ArgumentError, ConfigError, ShapeError

SCHEDULES = ["squaredcos_cap_v2", "linear", "scaled_linear"]
SPACINGS = ["trailing", "leading", "linspace"]
STEPS = [1, 2, 3, 7, 10, 30, 50, 61, 1000]


def diffusers_twin(scheduler: MapScheduler) -> DDIMScheduler:
    config = scheduler.config
    twin = DDIMScheduler(
        beta_schedule=config.beta_schedule,
        beta_start=config.beta_start,
        beta_end=config.beta_end,
        timestep_spacing=config.timestep_spacing,
        prediction_type="sample",
        clip_sample_range=config.signal_scale,
    )
    # In float32, 1 - alpha_prev - sigma^2 comes out below 0 near pure noise, and its root as NaN.
    twin.alphas_cumprod = twin.alphas_cumprod.double()
    return twin


def recover_with_exact_noise(scheduler, x0: torch.Tensor) -> torch.Tensor:
    """Denoise with the prediction that the true noise implies: x0 must come back exactly.

    Each prediction is made from the current sample and the noise that was mixed into it, so a
    scheduler that arrives at other noise levels than it announces goes wrong.
    """
    noise = torch.randn_like(x0)
    alphas = scheduler.alphas_cumprod.double()
    first = int(scheduler.timesteps[0])
    sample = alphas[first].sqrt() * x0 + (1 - alphas[first]).sqrt() * noise
    for timestep in scheduler.timesteps.tolist():
        alpha = alphas[timestep]
        predicted = (sample - (1 - alpha).sqrt() * noise) / alpha.sqrt()
        sample = scheduler.step(predicted, timestep, sample).prev_sample
    return sample


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 5, 10, 50])
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("spacing", ["trailing", "leading"])
def test_steps_equal_diffusers_where_its_steps_divide(spacing, schedule, steps, eta):
    ours = MapScheduler(beta_schedule=schedule, timestep_spacing=spacing, signal_scale=0.5)
    theirs = diffusers_twin(ours)
    ours.set_timesteps(steps)
    theirs.set_timesteps(steps)
    assert torch.equal(ours.timesteps, theirs.timesteps)
    sample = torch.randn(3, 20, dtype=torch.float64)
    for timestep in ours.timesteps:
        prediction, noise = torch.randn_like(sample), torch.randn_like(sample)
        last = ours.previous_timestep(timestep) < 0
        expected = theirs.step(
            prediction,
            timestep,
            sample,
            eta=eta,
            use_clipped_model_output=True,
            # diffusers adds noise after the last step too, by the variance of its final alpha.
            variance_noise=torch.zeros_like(noise) if last else noise,
        )
        found = ours.step(prediction, timestep, sample, eta=eta, variance_noise=noise)
        torch.testing.assert_close(found.prev_sample, expected.prev_sample, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(found.pred_original_sample, prediction.clamp(-0.5, 0.5))
        sample = found.prev_sample


@pytest.mark.parametrize("train_timesteps", [1, 7, 10, 100, 1000])
@pytest.mark.parametrize("spacing", SPACINGS)
def test_every_number_of_steps_is_spaced_soundly(spacing, train_timesteps):
    scheduler = MapScheduler(num_train_timesteps=train_timesteps, timestep_spacing=spacing)
    for steps in range(1, train_timesteps + 1):
        scheduler.set_timesteps(steps)
        timesteps = scheduler.timesteps
        assert timesteps.dtype == torch.int64
        assert len(timesteps) == steps
        assert timesteps[-1] >= 0
        assert timesteps[0] < train_timesteps
        assert bool((timesteps.diff() < 0).all())
        if spacing == "trailing":
            assert timesteps[0] == train_timesteps - 1
            # Evenly: each is where it would be on a continuous scale, but for rounding.
            ideal = train_timesteps * torch.arange(steps, 0, -1).double() / steps - 1
            assert float((timesteps - ideal).abs().max()) <= 0.5 + 1e-9


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("spacing", SPACINGS)
def test_exact_noise_recovers_the_clean_maps(spacing, steps):
    # linear keeps some signal at every timestep, so that the noise determines it.
    scheduler = MapScheduler(beta_schedule="linear", timestep_spacing=spacing, clip_sample=False)
    scheduler.set_timesteps(steps)
    x0 = torch.full((2, 5), 0.7, dtype=torch.float64)
    torch.testing.assert_close(recover_with_exact_noise(scheduler, x0), x0, rtol=1e-6, atol=1e-6)


def test_diffusers_itself_fails_where_steps_do_not_divide():
    # Or the test before this one would not notice the fault it is there for.
    theirs = DDIMScheduler(prediction_type="sample", timestep_spacing="linspace", clip_sample=False)
    theirs.set_timesteps(10)
    x0 = torch.full((2, 5), 0.7, dtype=torch.float64)
    assert (recover_with_exact_noise(theirs, x0) - x0).abs().max() > 0.05


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("steps", STEPS[:-1])
@pytest.mark.parametrize("spacing", SPACINGS)
def test_true_prediction_recovers_the_clean_maps(spacing, steps, eta):
    scheduler = MapScheduler(timestep_spacing=spacing)
    scheduler.set_timesteps(steps)
    x0 = scheduler.to_signal(torch.rand(2, 5))
    sample = torch.randn(2, 5)
    for timestep in scheduler.timesteps:
        sample = scheduler.step(x0, timestep, sample, eta=eta).prev_sample
    torch.testing.assert_close(sample, x0)


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("spacing", SPACINGS)
def test_published_timesteps_are_the_ones_used(spacing, steps):
    scheduler = MapScheduler(timestep_spacing=spacing)
    scheduler.set_timesteps(steps)
    published = scheduler.timesteps.tolist()
    assert len(published) == steps == scheduler.num_inference_steps
    assert published == sorted(set(published), reverse=True)
    walked, timestep = [], published[0]
    while timestep >= 0:
        walked.append(timestep)
        timestep = scheduler.previous_timestep(timestep)
    assert walked == published


@pytest.mark.parametrize("steps", STEPS)
def test_sampling_starts_where_training_ends(steps):
    scheduler = MapScheduler()
    scheduler.set_timesteps(steps)
    assert scheduler.timesteps[0] == len(scheduler) - 1
    assert scheduler.alphas_cumprod[-1] < 1e-6


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_added_noise_equals_diffusers_and_the_formula(schedule):
    scheduler = MapScheduler(beta_schedule=schedule)
    x0, noise = torch.randn(2, 4, 7, dtype=torch.float64)
    timesteps = torch.tensor([0, 1, 500, 999])
    found = scheduler.add_noise(x0, noise, timesteps)
    torch.testing.assert_close(
        found, diffusers_twin(scheduler).add_noise(x0, noise, timesteps), rtol=1e-6, atol=1e-6
    )
    for row, timestep in enumerate(timesteps.tolist()):
        alpha = float(scheduler.alphas_cumprod[timestep])
        expected = alpha**0.5 * x0[row] + (1 - alpha) ** 0.5 * noise[row]
        torch.testing.assert_close(found[row], expected)


def test_tables_stay_where_they_are_and_inputs_as_they_are():
    scheduler = MapScheduler()
    meta = torch.zeros(1, 5, device="meta")
    scheduler.add_noise(meta, meta, torch.zeros(1, dtype=torch.int64, device="meta"))
    x0, noise = torch.randn(1, 5), torch.randn(1, 5)
    before = x0.clone(), noise.clone()
    scheduler.add_noise(x0, noise, torch.tensor([3]))
    scheduler.step(x0, 999, noise, eta=1.0)
    assert torch.equal(x0, before[0])
    assert torch.equal(noise, before[1])
    assert scheduler.alphas_cumprod.device.type == "cpu"


@pytest.mark.parametrize("scale", [0.02, 0.1, 1.0, 2.0])
def test_signal_is_an_affine_image_of_iou(scale):
    scheduler = MapScheduler(signal_scale=scale)
    iou = torch.rand(3, 9, dtype=torch.float64)
    ends = scheduler.to_signal(torch.tensor([[0.0, 0.5, 1.0]]))
    torch.testing.assert_close(ends, torch.tensor([[-scale, 0.0, scale]]))
    torch.testing.assert_close(scheduler.to_iou(scheduler.to_signal(iou)), iou)


@pytest.mark.parametrize("scale", [0.1, 1.0])
@pytest.mark.parametrize("timestep", [0, 300, 700, 999])
def test_model_input_has_about_unit_variance(timestep, scale):
    grid = MapGrid(32, 8, 3)
    moments = torch.rand(64, 2).sort(dim=1).values * 31 + torch.tensor([0.0, 0.5])
    iou = IoUMapBuilder(grid).packed(moments, torch.ones(64))
    scheduler, timesteps = MapScheduler(signal_scale=scale), torch.full((64,), timestep)
    noisy = scheduler.add_noise(scheduler.to_signal(iou), torch.randn_like(iou), timesteps)
    scaled = scheduler.scale_model_input(noisy, timesteps)
    assert 0.7 < scaled.square().mean().sqrt() < 1.3
    torch.testing.assert_close(scheduler.scale_model_input(noisy, timestep), scaled)
    plain = MapScheduler(normalize_input=False)
    assert plain.scale_model_input(noisy, timesteps) is noisy


def test_eta_takes_noise_from_the_generator():
    scheduler = MapScheduler()
    scheduler.set_timesteps(4)
    sample, prediction = torch.randn(2, 5), torch.randn(2, 5)

    def stepped(seed, **kwargs):
        generator = torch.Generator().manual_seed(seed)
        return scheduler.step(prediction, 999, sample, generator=generator, **kwargs).prev_sample

    assert torch.equal(stepped(0, eta=1.0), stepped(0, eta=1.0))
    assert not torch.equal(stepped(0, eta=1.0), stepped(1, eta=1.0))
    assert torch.equal(stepped(0), stepped(1))
    pair = scheduler.step(prediction, 999, sample, return_dict=False)
    assert torch.equal(pair[0], stepped(0))


def test_saving_and_loading_keeps_the_steps(tmp_path):
    scheduler = MapScheduler(num_train_timesteps=100, signal_scale=0.3, beta_schedule="linear")
    scheduler.save_pretrained(tmp_path)
    for again in (
        MapScheduler.from_pretrained(tmp_path),
        MapScheduler.from_config(scheduler.config),
        pickle.loads(pickle.dumps(scheduler)),
        copy.deepcopy(scheduler),
    ):
        for name, value in scheduler.config.items():
            if not name.startswith("_"):
                assert again.config[name] == value
        sample, prediction = torch.randn(1, 5), torch.randn(1, 5)
        for one in (scheduler, again):
            one.set_timesteps(3)
        first = scheduler.step(prediction, 99, sample).prev_sample
        assert torch.equal(first, again.step(prediction, 99, sample).prev_sample)


def test_bad_configurations_are_refused():
    with refuses(ConfigError, "got 'num_train_timestep'. Did you mean num_train_timesteps?"):
        MapScheduler.from_config({"num_train_timestep": 10})
    with refuses(
        ConfigError, "MapScheduler: expected beta_schedule to be one of squaredcos_cap_v2"
    ):
        MapScheduler(beta_schedule="cosine")
    with refuses(ConfigError, "expected timestep_spacing to be one of trailing, leading, linspace"):
        MapScheduler(timestep_spacing="even")
    for name, value, interval in (
        ("signal_scale", 0, "(0, inf)"),
        ("signal_scale", float("inf"), "(0, inf)"),
        ("beta_start", 0, "(0, 1]"),
        ("beta_end", 2, "(0, 1]"),
    ):
        with refuses(ArgumentError, f"expected {name} in {interval}, got {value!r}."):
            MapScheduler(**{name: value})
    with refuses(ArgumentError, "expected num_train_timesteps to be an integer >= 1, got 0."):
        MapScheduler(num_train_timesteps=0)


def test_bad_timesteps_are_refused():
    scheduler, maps = MapScheduler(), torch.zeros(2, 5)
    for wrong in (-1, 1000):
        text = f"MapScheduler.add_noise: expected timesteps in 0 to 999, got {wrong}."
        with refuses(ArgumentError, text):
            scheduler.add_noise(maps, maps, torch.tensor([0, wrong]))
    with refuses(ArgumentError, "add_noise: expected integer timesteps, got torch.float32."):
        scheduler.add_noise(maps, maps, torch.tensor([0.0, 1.0]))
    with refuses(ShapeError, "add_noise: expected timesteps of shape (B) with B = 2, got (1,)."):
        scheduler.add_noise(maps, maps, torch.tensor([5]))
    with refuses(ArgumentError, "scale_model_input: expected timesteps in 0 to 999, got 1000."):
        scheduler.scale_model_input(maps, 1000)
    scheduler.set_timesteps(2)
    with refuses(
        ArgumentError,
        "MapScheduler: expected a timestep that set_timesteps(2) chose, got 500. "
        "Loop over scheduler.timesteps.",
    ):
        scheduler.step(maps, 500, maps)


def test_other_bad_arguments_are_refused():
    scheduler, maps = MapScheduler(), torch.zeros(2, 5)
    with refuses(ShapeError, "add_noise: expected noise of shape (B, cells) with B = 2, cells = 5"):
        scheduler.add_noise(maps, maps[:, :4], torch.tensor([0, 1]))
    with refuses(ShapeError, "step: expected model_output of shape (B, cells) with B = 2"):
        scheduler.step(maps[:1], 999, maps)
    with refuses(ShapeError, "step: expected variance_noise of shape (B, cells) with B = 2"):
        scheduler.step(maps, 999, maps, eta=1.0, variance_noise=maps[:1])
    with refuses(ArgumentError, "MapScheduler.step: expected eta in [0, 1], got 1.5."):
        scheduler.step(maps, 999, maps, eta=1.5)
    for wrong in (0, -3, 2.5):
        with refuses(ArgumentError, "expected num_inference_steps to be an integer >= 1"):
            scheduler.set_timesteps(wrong)
    with refuses(ArgumentError, "expected num_inference_steps in [1, 1000], got 1001."):
        scheduler.set_timesteps(1001)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32])
def test_timesteps_of_any_integer_type(dtype):
    scheduler = MapScheduler()
    x0, noise = torch.rand(3, 5), torch.randn(3, 5)
    timesteps = torch.tensor([1, 0, 100])
    found = scheduler.add_noise(x0, noise, timesteps.to(dtype))
    torch.testing.assert_close(found, scheduler.add_noise(x0, noise, timesteps))
