"""Wrong usage: exit code 2, and one line that says what is wrong."""

import shlex

import pytest

NO_EFFECT = "it has no effect without"
CASES = {
    "train --features x.h5": f"'--features': {NO_EFFECT} --train or --root.",
    "train --seconds-per-feature 1": f"'--seconds-per-feature': {NO_EFFECT} --features.",
    "train --test x": f"'--test': {NO_EFFECT} --train or --root.",
    "train --resume --model prior": f"'--resume': {NO_EFFECT} a model to train.",
    "train --ranking nms --model prior": f"'--ranking': {NO_EFFECT} a model to train.",
    "train --compile --model oracle": f"'--compile': {NO_EFFECT} a model to train.",
    "train --deterministic --model oracle": f"'--deterministic': {NO_EFFECT} a model to train.",
    "train --activation-checkpointing --model oracle": f"'--activation-checkpointing': {NO_EFFECT}",
    "train --checkpoint-minutes 3 --model oracle": f"'--checkpoint-minutes': {NO_EFFECT} a model",
    "train --epochs 2 --model oracle": f"'--epochs': {NO_EFFECT} a model to train.",
    "train --objective bce-full --model prior": f"'--objective': {NO_EFFECT} a model to train.",
    "train --learning-rate 1 --model similarity": f"'--learning-rate': {NO_EFFECT} a network to t",
    "train --train . --test tests/conftest.py --test-split val --features y":
        f"'--test-split': {NO_EFFECT} a folder of queries.",
    "train --decoder cnn-mul --model ms2dtan": f"'--decoder': {NO_EFFECT} a model with such a dec",
    "train --decoder cnn-mul --model prior": f"'--decoder': {NO_EFFECT} a model with such a dec",
    "train --steps 2 --model ms2dtan": f"'--steps': {NO_EFFECT} --model diffusion.",
    "train --samples 2 --model deterministic": f"'--samples': {NO_EFFECT} --model diffusion.",
    "train --frame-encoder x": f"'--frame-encoder': {NO_EFFECT} features of videos.",
    "train --root x --features timeline --frame-encoder x": f"{NO_EFFECT} features of videos.",
    "train --root x": "'--features': pass the features of the videos.",
    "train --train x --features y": "'--train': it also needs --test, --root or --holdout.",
    "train --root x --train y --test z --features f.h5":
        f"'--root': {NO_EFFECT} queries to take from it or --features timeline.",
    "train --root x --train y --holdout 0.5 --features f.h5": f"'--root': {NO_EFFECT} queries to",
    "train --resume --overwrite": "'--overwrite': it cannot be combined with --resume.",
    "train --preset huge": "Invalid value for '--preset'",
    "train --dataset didemo --protocol rank": "'--protocol': the protocol of DiDeMo is",
    "evaluate x --dataset tacos --protocol didemo": "'--protocol': the protocol of DiDeMo is",
    "score x": "Missing option '--test'.",
    "evaluate x --features x.h5": f"'--features': {NO_EFFECT} --test or --root.",
    "evaluate x --root x": "'--features': pass the features of the videos.",
    "evaluate x --test x.json --test x.json --features f.h5":
        "'--test': pass files with different names.",
    "evaluate x --root x --test y --features f.h5":
        f"'--root': {NO_EFFECT} queries to take from it or --features timeline.",
    "convert timeline new": "'--root': pass the folder of Charades.",
    "convert f.h5 new --root x": f"'--root': {NO_EFFECT} SRC timeline.",
    "convert f.h5 new --seed 0": f"'--seed': {NO_EFFECT} SRC timeline.",
    "convert timeline new --root x --seconds-per-feature 1": f"{NO_EFFECT} a store as SRC.",
    "convert f.h5 new --format csv": "Invalid value for '--format'",
    "localize a.mp4": "Missing argument",
    "localize a.npy dog --model x --strip y.png": f"'--strip': {NO_EFFECT} a video.",
    "localize a.mp4 dog --model x --seconds-per-feature 1": f"{NO_EFFECT} features.",
    "extract x --out x.h5": "pass one image model: --model or --frame-encoder.",
    "extract x --out x.h5 --model a --frame-encoder b": "pass one image model: --model or",
    "extract x --out x.h5 --frame-encoder b --random-weights":
        f"'--random-weights': {NO_EFFECT} a timm model.",
    "inspect x --dataset mad": "Invalid value for '--dataset'",
    "": "Missing command.",
    "extrct": "No such command 'extrct'. Did you mean 'extract', 'export'?",
    "extract videos --model vgg16": "Missing option '--out'.",
    "--no-such": "No such option: --no-such",
}  # fmt: skip
NUMBERS = {
    "--seed": "train",
    "--learning-rate": "train",
    "--limit": "evaluate x",
    "--steps": "evaluate x",
    "--samples": "localize x y --model z",
    "--gpus-per-worker": "localize-corpus x y z --out o",
    "--fps": "extract x --model y --out z",
    "--seconds-per-feature": "convert x y",
    "--max-megabytes": "demo x",
}


@pytest.mark.parametrize("line", CASES)
def test_wrong_usage_is_code_2(run, line):
    found = run(*shlex.split(line))
    assert (found.code, found.out) == (2, "")
    usage, hint, error = found.err.splitlines()
    assert usage.startswith("Usage: tmapdiff")
    assert hint.startswith("Try 'tmapdiff")
    assert error.startswith("error: ")
    assert CASES[line] in error


@pytest.mark.parametrize("option", NUMBERS)
def test_numbers_are_plain_ones(run, option):
    for number in ("1_0", "nan", "inf", "\uff11", " 1"):
        found = run(*NUMBERS[option].split(), option, number)
        assert found.code == 2
        assert f"error: Invalid value for '{option}': {number!r} is not a valid " in found.err
