import json

import plot_speed
import pytest
from helpers.assertions import refuses
from speed_cases import RECORD_FIELDS

from tmapdiff.errors import FileError

METADATA = {"device": "cpu", "cpu": "a processor", "torch": "2", "commit": "0" * 40, "dirty": True}


def record(**fields):
    usual = {
        "suite": "kernels",
        "case": "stack",
        "backend": "auto",
        "shape": {"batch": 8},
        "dtype": "float32",
        "reference": "reference",
        "ratio_to_reference": 0.5,
        "ratio_p20": 0.4,
        "ratio_p80": 0.7,
    }
    return {**dict.fromkeys(RECORD_FIELDS), **usual, **fields}


@pytest.fixture
def result():
    return {
        "metadata": METADATA,
        "results": [
            record(backend="reference", ratio_to_reference=1.0, ratio_p20=1.0, ratio_p80=1.0),
            record(),
            record(backend="spectral", ratio_to_reference=2.0, ratio_p20=1.5, ratio_p80=3.0),
            record(suite="decoder", case="step"),
            record(backend="broken", ratio_to_reference=None, ratio_p20=None, error="E: no"),
        ],
    }


def test_bars_reach_from_one_to_the_ratio_with_whiskers_around_it(result):
    groups = plot_speed.drawable(result)
    assert [len(group) for group in groups.values()] == [2, 1]
    figure = plot_speed.draw(result, groups)
    kernels, decoder = figure.axes
    bars = [(bar.get_x(), bar.get_width()) for bar in kernels.patches]
    assert bars == [(1, -0.5), (1, 1.0)]
    whiskers = [line.get_segments()[0][:, 0].tolist() for line in kernels.collections]
    assert whiskers == [pytest.approx([0.4, 0.7]), pytest.approx([1.5, 3.0])]
    # A backend looks alike in all panels, and unlike the others.
    looks = [(bar.get_facecolor(), bar.get_hatch()) for bar in kernels.patches]
    assert looks[0] == (decoder.patches[0].get_facecolor(), decoder.patches[0].get_hatch())
    assert looks[0] != looks[1]
    assert kernels.get_ylabel() == "kernels: stack\nbatch 8\n1 is reference"
    assert [label.get_text() for label in kernels.get_yticklabels()] == [
        "auto, float32  0.5",
        "spectral, float32  2",
    ]


def test_a_picture_is_written_and_failures_are_named(result, tmp_path, capsys):
    (tmp_path / "speed.json").write_text(json.dumps(result))
    picture = tmp_path / "speed.png"
    plot_speed.main([str(tmp_path / "speed.json"), "--output", str(picture)])
    assert picture.stat().st_size > 10_000
    assert capsys.readouterr().out == "not drawn: kernels: stack, broken: E: no\n"


def test_one_suite_is_drawn_alone(result):
    assert len(plot_speed.drawable(result, "decoder")) == 1


def test_files_without_ratios_are_refused(result, tmp_path):
    arguments = [str(tmp_path / "speed.json"), "--output", str(tmp_path / "speed.png")]
    with refuses(FileError, "plot_speed: expected a result of speed.py: "):
        plot_speed.main(arguments)
    (tmp_path / "speed.json").write_text(json.dumps({**result, "results": []}))
    with refuses(FileError, "plot_speed: expected ratios in ", "found none."):
        plot_speed.main(arguments)
