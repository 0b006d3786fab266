import json
import os
import time

import pytest
import speed
import torch
from helpers.assertions import refuses
from speed_cases import Candidate, Contest, Record, TimedCase
from speed_suites import SUITES

from tmapdiff.errors import ArgumentError
from tmapdiff.kernels._dispatch import CACHE_VARIABLE

QUICK = ["--device", "cpu", "--quick", "--preset", "nano", "--batch", "2"]
METADATA = {"timestamp", "command", "device", "cuda", "cpu", "seed", "git_commit"}


def run(folder, *arguments):
    output = folder / "speed.json"
    status = speed.main([*QUICK, *arguments, "--output", str(output)])
    return status, json.loads(output.read_text())


GOOD = Candidate("reference", torch.neg, [torch.ones(2)])


def suite_of(*candidates):
    def cases(setting):
        yield TimedCase("suite", "case", {}, torch.float32, lambda: Contest(candidates))

    return cases


@pytest.mark.train
def test_models_and_kernels_run_in_seconds(tmp_path, capsys):
    suites = ["kernels", "decoder", "sampling", "training", "memory"]
    status, result = run(tmp_path, "--suite", *suites)
    assert status == 0
    assert set(result["metadata"]) >= METADATA
    assert result["metadata"]["threads"] == torch.get_num_threads()
    assert result["ceilings"]["bytes_per_second"] > 0
    assert result["ceilings"]["operations_per_second"]["float32"] > 0
    records = result["results"]
    assert {one["suite"] for one in records} == set(suites)
    assert all(one.keys() == Record.__dataclass_fields__.keys() for one in records)
    assert all(one["error"] is None for one in records)
    printed = capsys.readouterr().out
    for one in records:
        assert one["case"] in printed
        if one["suite"] == "memory":
            assert one["peak_mib"] > 0
            continue
        assert 0 < one["p20_us"] <= one["median_us"] <= one["p80_us"]
        assert 0 < one["ratio_p20"] <= one["ratio_to_reference"] <= one["ratio_p80"]
        if one["backend"] in ("reference", "spectral", "auto") and one["suite"] != "training":
            assert one["error_vs_float64"] < 1e-4, one
    assert all(one["floor_us"] > 0 for one in records if one["suite"] == "decoder")
    # Ten steps are compared with one pass of MS-2D-TAN.
    sampling = [one for one in records if one["suite"] == "sampling"]
    assert {one["reference"] for one in sampling} == {"ms2dtan"}
    assert {"ms2dtan", "auto", "reference"} <= {one["backend"] for one in sampling}


def test_every_suite_has_cases(capsys):
    setting = speed.Setting(torch.device("cpu"), [torch.float32], quick=True)
    for name, cases in SUITES.items():
        found = list(cases(setting))
        assert found
        assert {one.suite for one in found} == {name}


def test_training_leaves_out_batches_of_one():
    setting = speed.Setting(torch.device("cpu"), [torch.float32], [1, 4])
    for name in ("training", "memory"):
        trained = [one for one in SUITES[name](setting) if one.name != "sampling"]
        assert [one.shape["batch"] for one in trained] == [4]


def test_what_is_broken_ends_in_an_error_after_the_rest(tmp_path, capsys, monkeypatch):
    def fail(given):
        raise ValueError("this is broken")

    monkeypatch.setitem(SUITES, "kernels", suite_of(Candidate("broken", fail, [1]), GOOD))
    status, result = run(tmp_path, "--suite", "kernels")
    assert status == 1
    errors = {one["backend"]: one["error"] for one in result["results"]}
    assert errors == {"broken": "ValueError: this is broken", "reference": None}
    assert "FAILED suite: case, broken: ValueError: this is broken" in capsys.readouterr().out


def test_what_was_measured_outlives_an_interruption(tmp_path, monkeypatch):
    def cases(setting):
        yield from suite_of(GOOD)(setting)
        raise KeyboardInterrupt

    monkeypatch.setitem(SUITES, "kernels", cases)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, "--suite", "kernels")
    result = json.loads((tmp_path / "speed.json").read_text())
    assert [one["backend"] for one in result["results"]] == ["reference"]


def test_cases_are_chosen_by_name(tmp_path, capsys):
    status, result = run(tmp_path, "--suite", "kernels", "--only", "gated")
    assert status == 0
    assert {one["case"] for one in result["results"]} == {"gated stack"}
    status, _ = run(tmp_path, "--suite", "kernels", "--only", "nothing")
    assert status == 1
    assert "FAILED no case's name contains 'nothing'" in capsys.readouterr().out


def test_choices_are_measured_anew_and_the_users_stay(tmp_path, monkeypatch):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "own"))
    during = []

    def look(given):
        during.append(os.environ[CACHE_VARIABLE])

    monkeypatch.setitem(SUITES, "kernels", suite_of(Candidate("reference", look, [1])))
    run(tmp_path, "--suite", "kernels")
    assert set(during).isdisjoint({str(tmp_path / "own")})
    assert os.environ[CACHE_VARIABLE] == str(tmp_path / "own")


def test_cpu_time_is_what_one_thread_computes(tmp_path, monkeypatch):
    threads = []
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    asleep = Candidate("reference", lambda given: time.sleep(0.05), [1])
    monkeypatch.setitem(SUITES, "kernels", suite_of(asleep))
    _, result = run(tmp_path, "--suite", "kernels", "--cpu-time")
    assert result["results"][0]["median_us"] < 25_000
    assert threads == [1]
    with refuses(ArgumentError, "speed: expected --device cpu for --cpu-time, got cuda."):
        speed.main(["--device", "cuda", "--cpu-time"])


def test_files_are_named_by_suites_device_and_dtypes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(SUITES, "kernels", suite_of(GOOD))
    speed.main([*QUICK, "--suite", "kernels", "--dtype", "float32", "bfloat16"])
    assert (tmp_path / "runs/speed/kernels-cpu-float32-bfloat16-quick.json").exists()


def test_impossible_wishes_are_refused():
    with refuses(ArgumentError, "speed: expected --batch of 1 or more, got 0."):
        speed.main(["--device", "cpu", "--batch", "0"])
    if not torch.cuda.is_available():
        with refuses(ArgumentError, "speed: expected a GPU for --device cuda"):
            speed.main(["--device", "cuda"])
