"""One pipeline in eight threads gives the same answers as in one, whatever the options."""

import copy
import pickle
import time
from functools import partial

import pytest
import torch
from helpers.assertions import assert_close, assert_same
from helpers.pipelines import QUERIES, WORDS, make_features, make_localizer, make_pipe, seeds
from helpers.text_encoders import tiny_text_encoder
from helpers.threads import at_once
from helpers.tiers import mostly_exhaustive

from tmapdiff import MS2DTAN, MapScheduler

STEPS = [1, 2, 2, 3, 4, 5, 6, 7]  # one per thread
ROUNDS = 2
SOLVERS = {
    "ddim": ("ddim", 0.0),
    "ddim, eta": ("ddim", 1.0),
    "dpmsolver++": ("dpmsolver++", 0.0),
    "unipc": ("unipc", 0.0),
}


def ask(pipe, thread, **options):
    generator = seeds(len(QUERIES), 10 * thread)
    found = pipe(make_features(20 + thread, thread), QUERIES, generator=generator, **options)
    return torch.stack([one.nan_to_num(0) for one in found.maps])


def assert_answers_as_alone(pipe, options):
    assert_as_alone([partial(ask, pipe, thread, **one) for thread, one in enumerate(options)])


def assert_as_alone(calls):
    alone = [call() for call in calls]
    for _ in range(ROUNDS):
        for found, expected in zip(at_once(calls), alone, strict=True):
            assert_close(found, expected)


@mostly_exhaustive("spacing", ["trailing", "linspace"], "trailing")
@mostly_exhaustive("asked", SOLVERS, "unipc")
def test_threads_with_numbers_of_steps_of_their_own(asked, spacing):
    solver, eta = asked
    pipe = make_pipe(
        make_localizer(scheduler_config={"solver": solver, "timestep_spacing": spacing})
    )
    assert_answers_as_alone(pipe, [{"num_inference_steps": count, "eta": eta} for count in STEPS])


@mostly_exhaustive("solver", ["ddim", "unipc"], "ddim")
def test_threads_with_numbers_of_samples_of_their_own(solver):
    pipe = make_pipe(make_localizer(scheduler_config={"solver": solver}, num_inference_steps=4))
    assert_answers_as_alone(pipe, [{"num_samples": 1 + count % 3} for count in range(8)])


@pytest.mark.parametrize("fields", [{"kind": MS2DTAN}, {"deterministic": True}])
def test_threads_of_a_model_that_does_not_sample(fields):
    pipe = make_pipe(make_localizer(**fields))
    assert_answers_as_alone(pipe, [{"top_n": 1 + thread} for thread in range(8)])


def test_threads_with_videos_of_other_lengths(monkeypatch):
    # Each length has its own spectra, and a layer caches only one.
    monkeypatch.setenv("TMAPDIFF_BACKEND", "map_conv=spectral")
    pipe = make_pipe(clip_seconds=0.5)

    def ask_of(length):
        found = pipe(make_features(length, length), QUERIES[0], generator=seeds(1, length))
        return found.maps[0].nan_to_num(0)

    assert_as_alone([partial(ask_of, length) for length in (16, 32, 48, 64, 96, 128, 160, 192)])


class _GivingWay(dict):
    """A dictionary that yields to other threads after each lookup, to provoke races."""

    def __contains__(self, key):
        found = super().__contains__(key)
        time.sleep(0)
        return found


def test_threads_whose_sentences_are_encoded_by_transformers():
    text_encoder = tiny_text_encoder(WORDS)
    text_encoder.cache_size = 3  # so that threads evict entries that others use
    channels = {"vocabulary_size": None, "text_channels": text_encoder.token_channels}
    pipe = make_pipe(make_localizer(encoder=channels), vocabulary=None, text_encoder=text_encoder)
    sentences = [" ".join(WORDS[:count]) for count in range(1, 6)]
    alone = [pipe.encode_queries([one])[0] for one in sentences]
    text_encoder._cache = _GivingWay()

    def encode(first):
        turns = [(first + turn) % len(sentences) for turn in range(60)]
        return [(turn, pipe.encode_queries([sentences[turn]])[0]) for turn in turns]

    for found in at_once([partial(encode, first) for first in range(8)]):
        for turn, one in found:
            assert_close(one, alone[turn])


@pytest.mark.parametrize("solver", ["ddim", "dpmsolver++", "unipc"])
def test_runs_of_one_scheduler_do_not_see_each_other(solver):
    scheduler = MapScheduler(solver=solver)
    predictions = scheduler.to_signal(torch.rand(7, 2, 5, dtype=torch.float64))

    def step(run, index, sample):
        timestep = run.timesteps[index]
        return scheduler.step(predictions[index], timestep, sample, run=run).prev_sample

    def alone(count):
        scheduler.set_timesteps(count)
        sample = torch.ones(2, 5, dtype=torch.float64)
        for timestep, prediction in zip(scheduler.timesteps, predictions, strict=False):
            sample = scheduler.step(prediction, timestep, sample).prev_sample
        return sample

    expected = [alone(count) for count in (4, 7)]
    scheduler.set_timesteps(3)
    runs = [scheduler.begin(4), scheduler.begin(7)]
    samples = [torch.ones(2, 5, dtype=torch.float64) for _ in runs]
    for index in range(7):
        for which, run in enumerate(runs):
            if index < len(run.timesteps):
                samples[which] = step(run, index, samples[which])
    for sample, one in zip(samples, expected, strict=True):
        assert_same(sample, one)
    assert len(scheduler.timesteps) == 3  # the run of set_timesteps stays


def test_localizing_leaves_the_run_of_set_timesteps_alone():
    pipe = make_pipe(make_localizer(scheduler_config={"solver": "unipc"}))
    scheduler = pipe.localizer.scheduler
    scheduler.set_timesteps(6)
    sample = scheduler.step(torch.zeros(1, 5), int(scheduler.timesteps[0]), torch.ones(1, 5))
    ask(pipe, 0, num_inference_steps=3)
    assert len(scheduler.timesteps) == 6
    scheduler.step(torch.zeros(1, 5), int(scheduler.timesteps[1]), sample.prev_sample)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_pipelines_can_be_copied(copied):
    pipe, other = make_pipe(), copied(make_pipe())
    assert_same(ask(other, 0), ask(pipe, 0))
