"""Suites of `speed.py`: functions from the setting to their cases, in the order they run."""

from speed_suites import (
    corpus,
    denoising,
    elementwise,
    exported,
    kernels,
    long_videos,
    postprocess,
    training,
)

SUITES = {
    "kernels": kernels.cases,
    "decoder": denoising.decoder_cases,
    "sampling": denoising.sampling_cases,
    "training": training.cases,
    "postprocess": postprocess.cases,
    "memory": training.memory_cases,
}
# Suites that take long or measure the figures of a single page, and run only when named.
EXTRA_SUITES = {
    "operations": elementwise.operation_cases,
    "choices": kernels.choice_cases,
    "long-videos": long_videos.cases,
    "corpus": corpus.cases,
    "export": exported.cases,
}
