import pytest

pytest.importorskip("pyarrow", reason="pyarrow comes with the extra ray")

from corpus import make_corpus, measure_steps, run


def test_a_pair_costs_more_than_its_steps():
    steps = measure_steps("nano", queries=4)
    assert all(seconds > 0 for seconds in steps.values())
    assert steps["pair: all, through the pipeline"] > steps["pair: denoising"] / 2


def test_a_run_is_measured_between_its_first_file_and_its_last(tmp_path):
    make_corpus(tmp_path, "nano", videos=4, queries=3)
    found = run(tmp_path, tmp_path / "out", workers=0, threads=1)
    assert found["pairs"] == 12
    assert 0 < found["seconds_to_first_file"] < found["seconds"]
    between = found["seconds"] - found["seconds_to_first_file"]
    assert found["pairs_a_second"] >= 0.9 * 9 / between
    assert found["bytes_a_pair"] > 50
