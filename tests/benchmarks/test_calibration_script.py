import json

import calibration
import pytest
import torch
from helpers.assertions import refuses

from tmapdiff.errors import ArgumentError, FileError


def write_run(folder, seed, queries=4000, slope=1.0, holdout=None, model="diffusion"):
    random = torch.Generator().manual_seed(seed)
    confidence = torch.rand(queries, generator=random)
    right = torch.rand(queries, generator=random) < confidence * slope
    iou = torch.where(right, 0.9, 0.1)
    folder.mkdir(exist_ok=True)
    found = {"confidence": confidence.tolist(), "iou": iou.tolist()}
    run = {
        "seed": seed,
        "held_out_training_videos": holdout,
        "features": "SIMULATED",
        "evaluated_on": f"{queries} pairs",
        "certainty": {"samples, 1 passes": found},
    }
    (folder / f"{model}_mse-seed{seed}.json").write_text(json.dumps(run))


def test_overconfidence_is_measured_and_mended(tmp_path, capsys):
    write_run(tmp_path / "fit", 7, slope=0.5, holdout=0.1)
    for seed in (0, 1):
        write_run(tmp_path / "runs", seed, slope=0.5)
    write_run(tmp_path / "runs", 0, model="ms2dtan")
    arguments = ["--fit", f"{tmp_path / 'fit'}", "--runs", f"{tmp_path / 'runs'}"]
    calibration.main([*arguments, "--plot", f"{tmp_path / 'plot.png'}"])
    lines = [line.split("|") for line in capsys.readouterr().out.splitlines() if "|" in line]
    errors = {line[1].strip(): float(line[3].split("±")[0]) for line in lines[2:]}
    assert errors["diffusion, expected hits"] == pytest.approx(25, abs=2)
    assert errors["diffusion, calibrated"] < 5
    assert errors["MS-2D-TAN"] < 5
    assert (tmp_path / "plot.png").stat().st_size > 10_000


def test_nothing_is_fitted_on_the_test_set(tmp_path):
    write_run(tmp_path / "runs", 0)
    with refuses(ArgumentError, "calibration: expected runs with --holdout in ", "on the test set"):
        calibration.main(["--fit", f"{tmp_path / 'runs'}", "--runs", f"{tmp_path / 'runs'}"])


def test_folders_without_runs_are_refused(tmp_path):
    with refuses(FileError, "calibration: expected runs of table 'steps' in ", "found none."):
        calibration.main(["--fit", f"{tmp_path}", "--runs", f"{tmp_path}"])
