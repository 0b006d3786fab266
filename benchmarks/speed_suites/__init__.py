"""Suites of `speed.py`: each is a function from the setting to its cases, in the order they run."""

from speed_suites import decoder, imports, kernels, memory, postprocess, sampling, training

SUITES = {
    "kernels": kernels.cases,
    "decoder": decoder.cases,
    "sampling": sampling.cases,
    "training": training.cases,
    "postprocess": postprocess.cases,
    "memory": memory.cases,
    "import": imports.cases,
}
