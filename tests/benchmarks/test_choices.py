import choices
import pytest


@pytest.mark.parametrize("options", [[], ["--training"]])
def test_ratios_are_listed(options, capsys):
    choices.main(["--first", "2", *options])
    head, line, *rows = capsys.readouterr().out.splitlines()
    assert head.count("|") == line.count("|") == 4
    assert len(rows) == 2
    by_arithmetic = [float(row.split("|")[2]) for row in rows]
    assert by_arithmetic == sorted(by_arithmetic)
    assert all(float(row.split("|")[3]) > 0 for row in rows)


def test_the_arithmetic_is_the_librarys():
    # 17x17 kernels are faster as spectra by far, single cells are not.
    large, small = (choices.compare((2, 16, 17, 32, 8, size), False, turns=1) for size in (17, 1))
    assert large.by_arithmetic > 2 > 1 > small.by_arithmetic
