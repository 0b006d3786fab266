"""Operations on the CPU beside their definitions."""

import pytest
import torch
from cpu_operations import NUM_GROUPS, SIZES, _maps, main, operations

from tmapdiff import MapGrid


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_each_operation_is_a_line(capsys):
    main(["--first", "1", "--seconds", "0"])
    head, _, *lines = capsys.readouterr().out.splitlines()
    assert head.count("|") == 6
    names = [line.split("|")[1].strip() for line in lines]
    assert names == ["gate", "stylization", "styled_residual", "unit_product"]
    for line in lines:
        *_, sizes, values, inference, training, _ = (part.strip() for part in line.split("|"))
        assert (sizes, values) == ("1 x 32 x 16x8", "4,096")
        assert float(inference) > 0
        assert float(training) > 0


def test_what_is_compared_is_the_same():
    batch, channels, rows, columns = 2, NUM_GROUPS, 6, 4
    mask = MapGrid(rows, columns, 1).mask(0, torch.device("cpu"))
    for width, others, call in operations(batch, channels).values():
        given = [_maps(batch, width, rows, columns), *others]
        ours, plain = (call(given, mask, backend) for backend in ("eager", "reference"))
        torch.testing.assert_close(ours, plain)


def test_sizes_grow():
    values = [torch.Size(sizes).numel() for sizes in SIZES]
    assert values == sorted(values)
