import json
import subprocess
import sys
from pathlib import Path

import pytest
from long_videos import CASES, CLIPS, draw, growth, main, table

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "long_videos.py"


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_growth_is_the_power_of_the_upper_half(power):
    # Below, a cost that does not grow hides it.
    costs = [max(clips, 1024) ** power for clips in CLIPS]
    assert growth(CLIPS, costs) == pytest.approx(power)


def test_each_number_of_clips_is_measured_in_a_process_of_its_own(tmp_path, capsys, monkeypatch):
    # Chosen by the clock, implementations of another memory could be compared.
    monkeypatch.setenv("TMAPDIFF_BACKEND", "map_conv=direct")
    result, picture = tmp_path / "long.json", tmp_path / "long.png"
    arguments = ["--clips", "64", "128", "256", "--cases", "nms", "--repeats", "1"]
    main([*arguments, "--json", str(result), "--plot", str(picture)])
    rows = json.loads(result.read_text())["results"]["nms"]
    assert [row["clips"] for row in rows] == [64, 128, 256]
    assert 1.5 < rows[2]["tensor_bytes"] / rows[1]["tensor_bytes"] < 2.5
    assert all(row["seconds"] > 0 and row["process_bytes"] >= 0 for row in rows)
    assert picture.read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert printed.startswith(f"{CASES['nms'].label}:")
    assert "| growth | " in printed


def test_tables_and_pictures_hold_all_cases():
    rows = [
        {"clips": clips, "seconds": clips / 1e3, "tensor_bytes": clips * 2**20, "process_bytes": 0}
        for clips in CLIPS
    ]
    assert "| 64 | 0.064 | 64.0 | 0 |" in table("label", rows)
    assert table("label", rows).endswith("| growth | 1.00 | 1.00 | |")
    figure = draw(dict.fromkeys(CASES, rows))
    assert [len(axes.lines) for axes in figure.axes] == [len(CASES) + 1] * 2


def test_a_case_that_is_unknown_is_refused():
    done = subprocess.run(
        [sys.executable, SCRIPT, "--cases", "all"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "invalid choice: 'all'" in done.stderr
