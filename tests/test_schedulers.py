import copy
import itertools
import pickle
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler
from helpers.assertions import assert_close, assert_same, refuses
from helpers.tiers import mostly_exhaustive

from tmapdiff import IoUMapBuilder, MapGrid, MapScheduler
from tmapdiff.errors import (
    ArgumentError,
    CheckpointError,
    ConfigError,
    FileError,
    ShapeError,
    TmapdiffError,
)

SCHEDULES = ["squaredcos_cap_v2", "linear", "scaled_linear"]
SPACINGS = ["trailing", "leading", "linspace"]
STEPS = [1, 2, 3, 7, 10, 30, 50, 61, 1000]
SOLVERS = ["ddim", "dpmsolver++", "unipc"]
MULTISTEP = ["dpmsolver++", "unipc"]


def close(found: torch.Tensor, expected: torch.Tensor, case: object = "", **tolerance: float):
    def named(text: str) -> str:
        return f"{case}: {text}"

    torch.testing.assert_close(found, expected, msg=named, **tolerance)


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
    """Denoise with predictions from the true noise, which must recover x0 exactly.

    Each prediction uses the current sample and the noise in it, so a scheduler whose actual noise
    levels differ from its declared ones fails.
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


def run(scheduler, predictions: torch.Tensor, **options) -> list[torch.Tensor]:
    """Samples after each step of a run with these predictions."""
    scheduler.set_timesteps(len(predictions))
    return resume(scheduler, predictions, torch.ones_like(predictions[0]), **options)


def resume(
    scheduler, predictions: torch.Tensor, sample: torch.Tensor, **options
) -> list[torch.Tensor]:
    samples = []
    timesteps = scheduler.timesteps[-len(predictions) :]
    for timestep, prediction in zip(timesteps, predictions, strict=True):
        sample = scheduler.step(prediction, timestep, sample, **options, return_dict=False)[0]
        samples.append(sample)
    return samples


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("spacing", ["trailing", "leading"])
def test_steps_equal_diffusers_where_its_steps_divide(spacing, schedule):
    ours = MapScheduler(beta_schedule=schedule, timestep_spacing=spacing, signal_scale=0.5)
    theirs = diffusers_twin(ours)
    for case in itertools.product([1, 2, 5, 20], [0.0, 0.5, 1.0]):
        steps, eta = case
        ours.set_timesteps(steps)
        theirs.set_timesteps(steps)
        assert torch.equal(ours.timesteps, theirs.timesteps), case
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
                # diffusers also adds noise after the last step, from its last alpha.
                variance_noise=torch.zeros_like(noise) if last else noise,
            )
            found = ours.step(prediction, timestep, sample, eta=eta, variance_noise=noise)
            close(found.prev_sample, expected.prev_sample, case, rtol=1e-5, atol=1e-5)
            close(found.pred_original_sample, prediction.clamp(-0.5, 0.5), case)
            sample = found.prev_sample


@mostly_exhaustive("train_timesteps", [1, 7, 10, 100, 1000], "1", "7", "10", "100")
@pytest.mark.parametrize("spacing", SPACINGS)
def test_published_timesteps_are_sound_and_the_ones_used(spacing, train_timesteps):
    scheduler = MapScheduler(num_train_timesteps=train_timesteps, timestep_spacing=spacing)
    for steps in range(1, train_timesteps + 1):
        scheduler.set_timesteps(steps)
        timesteps = scheduler.timesteps
        assert timesteps.dtype == torch.int64
        assert len(timesteps) == steps == scheduler.num_inference_steps
        assert timesteps[-1] >= 0
        assert timesteps[0] < train_timesteps
        assert bool((timesteps.diff() < 0).all())
        published = timesteps.tolist()
        if steps in STEPS:
            walked = [scheduler.previous_timestep(timestep) for timestep in timesteps]
            assert walked == [*published[1:], -1]
        if spacing == "trailing":  # sampling starts where training ends
            assert timesteps[0] == train_timesteps - 1
            # Evenly spaced, up to rounding.
            ideal = train_timesteps * torch.arange(steps, 0, -1).double() / steps - 1
            assert float((timesteps - ideal).abs().max()) <= 0.5 + 1e-9


@pytest.mark.parametrize("spacing", SPACINGS)
def test_exact_noise_recovers_the_clean_maps(spacing):
    # linear keeps some signal at every timestep, so that the noise determines it.
    scheduler = MapScheduler(beta_schedule="linear", timestep_spacing=spacing, clip_sample=False)
    x0 = torch.full((2, 5), 0.7, dtype=torch.float64)
    for steps in STEPS:
        scheduler.set_timesteps(steps)
        close(recover_with_exact_noise(scheduler, x0), x0, steps, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("solver", SOLVERS)
def test_timesteps_that_are_set_are_followed(solver):
    scheduler = MapScheduler(beta_schedule="linear", clip_sample=False, solver=solver)
    x0 = torch.full((2, 5), 0.07, dtype=torch.float64)
    for chosen in (slice(5, None), slice(1, None, 3)):  # from partly noised maps, and fewer steps
        scheduler.set_timesteps(12)
        scheduler.timesteps = timesteps = scheduler.timesteps[chosen]
        assert torch.equal(scheduler.timesteps, timesteps)
        assert scheduler.num_inference_steps == len(timesteps)
        close(recover_with_exact_noise(scheduler, x0), x0, chosen, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("wrong", [[], [5, 5], [1, 2], [1000, 5], [5, -1], [9.5, 5.0], [[5, 3]], 5])
def test_timesteps_that_are_no_run_are_not_set(wrong):
    scheduler = MapScheduler()
    scheduler.set_timesteps(3)
    with refuses(TmapdiffError, "MapScheduler.timesteps: expected "):
        scheduler.timesteps = torch.tensor(wrong)
    assert scheduler.timesteps.tolist() == [999, 666, 332]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_added_noise_equals_diffusers_and_the_formula(schedule):
    scheduler = MapScheduler(beta_schedule=schedule)
    x0, noise = torch.randn(2, 4, 7, dtype=torch.float64)
    timesteps = torch.tensor([0, 1, 500, 999])
    found = scheduler.add_noise(x0, noise, timesteps)
    close(found, diffusers_twin(scheduler).add_noise(x0, noise, timesteps), rtol=1e-6, atol=1e-6)
    for row, timestep in enumerate(timesteps.tolist()):
        alpha = float(scheduler.alphas_cumprod[timestep])
        expected = alpha**0.5 * x0[row] + (1 - alpha) ** 0.5 * noise[row]
        close(found[row], expected)


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_usual_loop_of_diffusers_runs(solver):
    scheduler = MapScheduler(solver=solver)
    scheduler.set_timesteps(4)
    x0, noise = torch.randn(2, 3, 5, dtype=torch.float64)
    sample = noise
    for t in scheduler.timesteps:  # 0-d tensors
        every = t.expand(3)
        for one in (t, int(t), t.numpy()[()]):
            assert_close(scheduler.add_noise(x0, noise, one), scheduler.add_noise(x0, noise, every))
            found = scheduler.scale_model_input(sample, one)
            assert_close(found, scheduler.scale_model_input(sample, every))
        sample = scheduler.step(x0, t, sample).prev_sample
    assert_close(sample, x0.clamp(-0.1, 0.1))


@pytest.mark.parametrize("solver", SOLVERS)
def test_tables_stay_where_they_are_and_inputs_as_they_are(solver):
    scheduler = MapScheduler(solver=solver)
    meta = torch.zeros(1, 5, device="meta")
    scheduler.add_noise(meta, meta, torch.zeros(1, dtype=torch.int64, device="meta"))
    assert scheduler.alphas_cumprod.device.type == "cpu"
    x0, noise = torch.randn(2, 1, 5)
    before = x0.clone(), noise.clone()
    scheduler.add_noise(x0, noise, torch.tensor([3]))
    scheduler.set_timesteps(3)
    for timestep in scheduler.timesteps:
        scheduler.step(x0, timestep, noise, eta=1.0 if solver == "ddim" else 0.0)
        assert torch.equal(x0, before[0])
        assert torch.equal(noise, before[1])


@pytest.mark.parametrize("scale", [0.02, 0.1, 1.0, 2.0])
def test_signal_is_an_affine_image_of_iou(scale):
    scheduler = MapScheduler(signal_scale=scale)
    assert scheduler.alphas_cumprod[-1] < 1e-6  # training ends at pure noise
    iou = torch.rand(3, 9, dtype=torch.float64)
    ends = scheduler.to_signal(torch.tensor([[0.0, 0.5, 1.0]]))
    close(ends, torch.tensor([[-scale, 0.0, scale]]))
    close(scheduler.to_iou(scheduler.to_signal(iou)), iou)


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
    close(scheduler.scale_model_input(noisy, timestep), scaled)
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


@pytest.mark.parametrize("solver", SOLVERS)
def test_saving_and_loading_keeps_the_steps(tmp_path, solver):
    scheduler = MapScheduler(
        num_train_timesteps=100, signal_scale=0.3, beta_schedule="linear", solver=solver
    )
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
        assert again.config["solver"] == solver
        predictions = torch.randn(4, 1, 5)
        assert_same(run(again, predictions)[-1], run(scheduler, predictions)[-1])


def test_bad_configurations_are_refused():
    with refuses(ConfigError, "got 'num_train_timestep'. Did you mean num_train_timesteps?"):
        MapScheduler.from_config({"num_train_timestep": 10})
    with refuses(ConfigError, "MapScheduler: expected only known configuration fields, got"):
        MapScheduler.from_config(DDIMScheduler().config)
    for name, value, choices in (
        ("beta_schedule", "cosine", "squaredcos_cap_v2"),
        ("timestep_spacing", "even", "trailing, leading, linspace, got 'even'."),
        ("solver", "dpm", "ddim, dpmsolver++, unipc, got 'dpm'."),
    ):
        with refuses(ConfigError, f"MapScheduler: expected {name} to be one of {choices}"):
            MapScheduler(**{name: value})
    for name, value, interval in (
        ("signal_scale", 0, "(0, inf)"),
        ("signal_scale", float("inf"), "(0, inf)"),
        ("beta_start", 0, "(0, 1]"),
        ("beta_end", 2, "(0, 1]"),
    ):
        with refuses(ArgumentError, f"expected {name} in {interval}, got {value!r}."):
            MapScheduler(**{name: value})
    for value, legal in ((0, "to be an integer >= 1"), (10**10, "in [1, 100000]")):
        with refuses(ArgumentError, f"expected num_train_timesteps {legal}, got {value}."):
            MapScheduler(num_train_timesteps=value)


def test_bad_timesteps_are_refused():
    scheduler, maps = MapScheduler(), torch.zeros(2, 5)
    for wrong, kind, text in (
        (torch.tensor([0, -1]), ArgumentError, "timesteps in 0 to 999, got -1."),
        (torch.tensor([0, 1000]), ArgumentError, "timesteps in 0 to 999, got 1000."),
        (torch.tensor(1000), ArgumentError, "timesteps in 0 to 999, got 1000."),
        (-1, ArgumentError, "timesteps in 0 to 999, got -1."),
        (torch.tensor([0.0, 1.0]), ArgumentError, "integer timesteps, got torch.float32."),
        (True, ArgumentError, "integer timesteps, got torch.bool."),
        (0.5, ArgumentError, "integer timesteps, got torch.float32."),
        (torch.tensor([5]), ShapeError, "timesteps of shape (B) with B = 2, got (1,)."),
    ):
        with refuses(kind, f"MapScheduler.add_noise: expected {text}"):
            scheduler.add_noise(maps, maps, wrong)
    with refuses(ArgumentError, "scale_model_input: expected timesteps in 0 to 999, got 1000."):
        scheduler.scale_model_input(maps, 1000)
    scheduler.set_timesteps(2)
    for wrong in (500, 999.5, torch.tensor(999.5), torch.tensor([999, 499]), "999", None):
        shown = wrong.tolist() if isinstance(wrong, torch.Tensor) else wrong
        expected = f"a timestep that set_timesteps(2) chose, got {shown}. Loop over"
        with refuses(ArgumentError, f"MapScheduler: expected {expected}"):
            scheduler.step(maps, wrong, maps)


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
    for name in ("add_noise", "scale_model_input"):  # its factors would be rounded to 0
        given = (maps.long(), maps, 9) if name == "add_noise" else (maps.long(), 9)
        with refuses(ArgumentError, f"MapScheduler.{name}: expected ", "of a floating dtype, got"):
            getattr(scheduler, name)(*given)
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
    close(found, scheduler.add_noise(x0, noise, timesteps))


# Multistep solvers


def multistep_twin(scheduler: MapScheduler, kind, **fields):
    """diffusers' second-order scheduler, with our timesteps and noise levels in float64."""
    twin = kind(prediction_type="sample", solver_order=2, **fields)
    # As its set_timesteps does, but that rounds noise levels to float32.
    twin.num_inference_steps = len(scheduler.timesteps)
    alphas = scheduler.alphas_cumprod[scheduler.timesteps]
    twin.timesteps = scheduler.timesteps
    twin.sigmas = torch.cat([((1 - alphas) / alphas).sqrt(), alphas.new_zeros(1)])
    return twin


def plain_unipc(**fields):
    # Without its corrector, UniPC is DPM-Solver++(2M), which diffusers lacks in float64.
    return UniPCMultistepScheduler(disable_corrector=list(range(1000)), **fields)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize(
    ("solver", "kind", "dtype", "tolerance"),
    [
        ("dpmsolver++", DPMSolverMultistepScheduler, torch.float32, 1e-5),
        ("dpmsolver++", plain_unipc, torch.float64, 1e-10),
        ("unipc", UniPCMultistepScheduler, torch.float64, 1e-10),
    ],
)
def test_multistep_solvers_equal_diffusers(solver, kind, dtype, tolerance, spacing):
    for case in itertools.product(SCHEDULES, [1, 2, 3, 5, 11]):
        schedule, steps = case
        ours = MapScheduler(
            solver=solver, beta_schedule=schedule, timestep_spacing=spacing, clip_sample=False
        )
        ours.set_timesteps(steps)
        theirs = multistep_twin(ours, kind)
        found = expected = torch.randn(3, 20, dtype=dtype)
        for timestep in ours.timesteps:
            prediction = torch.randn_like(found)
            found = ours.step(prediction, timestep, found).prev_sample
            expected = theirs.step(prediction, timestep, expected).prev_sample
            assert found.dtype == dtype
            close(found, expected, case, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("solver", SOLVERS)
def test_every_solver_arrives_at_true_predictions(solver, spacing):
    scheduler = MapScheduler(solver=solver, timestep_spacing=spacing)
    dtypes = [torch.float64, torch.float32, torch.bfloat16]
    etas = [0.0, 1.0] if solver == "ddim" else [0.0]
    for case in itertools.product([1, 2, 3, 5, 7, 10, 30], dtypes, etas):
        steps, dtype, eta = case
        x0 = scheduler.to_signal(torch.rand(2, 5, dtype=dtype))
        samples = run(scheduler, x0.expand(steps, 2, 5), eta=eta)
        assert all(one.dtype == dtype and bool(one.isfinite().all()) for one in samples), case
        assert_same(samples[-1], x0, f"{case}")


@pytest.mark.parametrize("solver", SOLVERS)
def test_every_solver_clips_predictions(solver):
    predictions = torch.randn(6, 2, 5, dtype=torch.float64)
    clipping = MapScheduler(solver=solver, signal_scale=0.5)
    plain = MapScheduler(solver=solver, signal_scale=0.5, clip_sample=False)
    found, expected = run(clipping, predictions), run(plain, predictions.clamp(-0.5, 0.5))
    for sample, other in zip(found, expected, strict=True):
        assert_same(sample, other)
    assert (run(plain, predictions)[-1] - found[-1]).abs().max() > 0.1
    clipping.set_timesteps(6)
    step = clipping.step(predictions[0], 999, torch.ones_like(predictions[0]))
    assert_same(step.pred_original_sample, predictions[0].clamp(-0.5, 0.5))


@pytest.mark.parametrize("solver", MULTISTEP)
def test_runs_do_not_remember_each_other(solver):
    scheduler = MapScheduler(solver=solver)
    predictions, others = scheduler.to_signal(torch.rand(2, 6, 2, 5, dtype=torch.float64))
    expected = run(scheduler, predictions)
    for begun in range(7):
        fresh = MapScheduler(solver=solver)
        fresh.set_timesteps(6)
        sample = torch.ones(3, 5, dtype=torch.float64)
        for timestep, prediction in zip(fresh.timesteps[:begun], others[:begun], strict=True):
            sample = fresh.step(prediction[:1].expand(3, 5), timestep, sample).prev_sample
        for one, other in zip(run(fresh, predictions), expected, strict=True):
            assert_same(one, other)
    # A finished run needs no set_timesteps for the next, of another size.
    again = resume(scheduler, predictions[:, :1], torch.ones(1, 5, dtype=torch.float64))
    assert_same(again[-2], expected[-2][:1])


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
@pytest.mark.parametrize("solver", MULTISTEP)
def test_copies_go_on_with_the_run(solver, copied):
    scheduler = MapScheduler(solver=solver)
    predictions = scheduler.to_signal(torch.rand(6, 2, 5))
    expected = run(scheduler, predictions)
    scheduler.set_timesteps(6)
    sample = torch.ones(2, 5)
    for timestep, prediction in zip(scheduler.timesteps[:3], predictions[:3], strict=True):
        sample = scheduler.step(prediction, timestep, sample).prev_sample
    for one in (copied(scheduler), scheduler):
        assert_same(resume(one, predictions[3:], sample)[1], expected[4])


@pytest.mark.parametrize("solver", SOLVERS)
def test_half_precision_is_near_full_precision(solver):
    scheduler = MapScheduler(solver=solver, signal_scale=1.0)
    predictions = scheduler.to_signal(torch.rand(10, 3, 40)).bfloat16()
    exact = run(scheduler, predictions.double())
    for sample, expected in zip(run(scheduler, predictions), exact, strict=True):
        assert_close(sample, expected.bfloat16())
    single = run(scheduler, predictions.float())
    for sample, expected in zip(single, exact, strict=True):
        assert_close(sample, expected.float())


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 10])
@pytest.mark.parametrize("train_timesteps", [10, 1000])  # one alpha is 0, or over a hundred
@pytest.mark.parametrize("solver", SOLVERS)
def test_no_signal_at_all_is_no_obstacle(solver, train_timesteps, steps):
    size = {"num_train_timesteps": train_timesteps}
    schedule = {**size, "beta_schedule": "linear", "beta_end": 1.0}
    scheduler = MapScheduler(solver=solver, **schedule)
    predictions = scheduler.to_signal(torch.rand(steps, 2, 5, dtype=torch.float64))
    samples = run(scheduler, predictions)
    assert all(bool(sample.isfinite().all()) for sample in samples)
    assert_same(samples[-1], predictions[-1])
    # A line through a point at infinity is level.
    empty = int((scheduler.alphas_cumprod[scheduler.timesteps] == 0).sum())
    assert empty >= 1
    if solver == "dpmsolver++":
        plain = run(MapScheduler(**schedule), predictions)
        for sample, expected in zip(samples[: empty + 1], plain, strict=False):
            assert_close(sample, expected)
    if solver == "ddim":
        scheduler.set_timesteps(steps)
        for timestep, prediction in zip(scheduler.timesteps, predictions, strict=True):
            noise = torch.randn_like(prediction)
            found = scheduler.step(prediction, timestep, noise, eta=1.0, variance_noise=noise)
            assert bool(found.prev_sample.isfinite().all())


@pytest.mark.parametrize("solver", MULTISTEP)
class TestMultistepRefuses:
    def test_noise(self, solver):
        scheduler, maps = MapScheduler(solver=solver), torch.zeros(2, 5)
        text = f"MapScheduler.step: expected eta = 0 and no variance_noise with solver {solver}, "
        with refuses(ArgumentError, text + "got eta = 0.5. Only solver ddim adds noise."):
            scheduler.step(maps, 999, maps, eta=0.5)
        with refuses(ArgumentError, text + "got variance_noise. Only solver ddim adds noise."):
            scheduler.step(maps, 999, maps, variance_noise=maps)

    def test_steps_out_of_order(self, solver):
        scheduler, maps = MapScheduler(solver=solver), torch.zeros(2, 5)
        scheduler.set_timesteps(4)
        assert scheduler.timesteps.tolist() == [999, 749, 499, 249]

        def refused(timestep: int, due: int):
            return refuses(
                ArgumentError,
                f"MapScheduler.step: expected timestep {due} next with solver {solver}, got "
                f"{timestep}. Its steps build on each other: set_timesteps starts a new run.",
            )

        with refused(499, due=999):
            scheduler.step(maps, 499, maps)
        scheduler.step(maps, 999, maps)
        for wrong in (999, 499, 249):
            with refused(wrong, due=749):
                scheduler.step(maps, wrong, maps)
        scheduler.step(maps, torch.tensor(749), maps)  # rejected calls changed nothing
        scheduler.step(maps, 499, maps)
        scheduler.step(maps, 249, maps)
        with refused(249, due=999):
            scheduler.step(maps, 249, maps)
        with refuses(ArgumentError, "expected a timestep that set_timesteps(4) chose, got 500."):
            scheduler.step(maps, 500, maps)

    def test_other_maps_in_the_middle(self, solver):
        scheduler, maps = MapScheduler(solver=solver), torch.zeros(2, 5)
        scheduler.set_timesteps(4)
        scheduler.step(maps, 999, maps)
        for wrong in (maps[:1], maps[:, :4], torch.zeros(3, 5)):
            expected = "expected sample of shape (B, cells) with B = 2, cells = 5, got "
            got = f"{tuple(wrong.shape)}. Its steps build on each other: set_timesteps starts"
            with refuses(ArgumentError, f"MapScheduler.step: {expected}{got}"):
                scheduler.step(wrong, 749, wrong)
        scheduler.step(maps, 749, maps)


@pytest.mark.parametrize("solver", SOLVERS)
def test_callers_may_reuse_their_tensors(solver):
    def maps_after(steps, reuse):
        scheduler = MapScheduler(solver=solver, clip_sample=False)
        scheduler.set_timesteps(6)
        random = torch.Generator().manual_seed(0)
        sample = torch.randn(2, 9, generator=random)
        buffer = torch.empty(2, 9)
        for timestep in scheduler.timesteps.tolist()[:steps]:
            prediction = (sample + torch.randn(2, 9, generator=random)).tanh()
            output = buffer.copy_(prediction) if reuse else prediction
            found = scheduler.step(output, timestep, sample)
            if reuse:
                sample.copy_(found.prev_sample)
                found.pred_original_sample.fill_(torch.nan)
            else:
                sample = found.prev_sample
        return sample

    for steps in range(1, 7):
        assert torch.equal(maps_after(steps, reuse=True), maps_after(steps, reuse=False)), steps


def test_saving_replaces_what_is_there_or_leaves_it(tmp_path, monkeypatch):
    folder = tmp_path / "saved"
    MapScheduler(signal_scale=0.2).save_pretrained(folder)
    (folder / "notes.txt").touch()
    MapScheduler(signal_scale=0.3).save_pretrained(folder)
    assert MapScheduler.from_pretrained(folder).config.signal_scale == 0.3
    with refuses(FileError, "MapScheduler: expected a folder to save in, got "):
        MapScheduler().save_pretrained(folder / "notes.txt")

    def fill_the_disk(self, place):
        Path(place).write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(MapScheduler, "to_json_file", fill_the_disk)
    with refuses(FileError, f"cannot write {folder}: No space left on device."):
        MapScheduler().save_pretrained(folder)
    assert MapScheduler.from_pretrained(folder).config.signal_scale == 0.3
    assert {one.name for one in folder.iterdir()} == {"notes.txt", "scheduler_config.json"}
    assert [one.name for one in tmp_path.iterdir()] == ["saved"]


@pytest.mark.parametrize("content", ["", "[]", "{", "9" * 5000, "[" * 10**5])
def test_a_configuration_that_is_none(tmp_path, content):
    (tmp_path / "scheduler_config.json").write_text(content)
    with refuses(CheckpointError, f"MapScheduler: cannot load {tmp_path}: "):
        MapScheduler.from_pretrained(tmp_path)
