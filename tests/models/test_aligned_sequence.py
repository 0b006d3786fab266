import math

import torch
import torch.nn.functional as F
from helpers.assertions import assert_close, assert_same
from helpers.contracts import draw, randomize_
from torch import Tensor

from tmapdiff.models.aligned_sequence import SequenceEncoder, average_alike


def inside_of(*counts: int) -> Tensor:
    return torch.arange(max(counts)) < torch.tensor(counts)[:, None]


def test_similarities_are_averaged_over_rows_that_are_alike_and_near() -> None:
    inside = inside_of(7, 4)
    rows = F.normalize(draw(2, 7, 4, dtype=torch.float64), dim=-1) * inside[..., None]
    similarities = draw(2, 3, 7, seed=1, dtype=torch.float64)
    found = average_alike(rows, similarities, inside)
    for sample, count in enumerate((7, 4)):
        for row in range(count):
            weights = [
                math.exp((float(rows[sample, row] @ rows[sample, one]) - 1) / 0.1)
                * math.exp(-abs(row - one) / 6)
                for one in range(count)
            ]
            weight = torch.tensor(weights, dtype=torch.float64) / sum(weights)
            assert_close(found[sample, :, row], similarities[sample, :, :count] @ weight)


def test_autocast_keeps_the_precision_of_what_is_standardised() -> None:
    encoder, read = SequenceEncoder(2, 8).eval(), []
    encoder.project.register_forward_pre_hook(lambda _, given: read.append(given[0]))
    # As in a single scene: all rows are similar.
    rows = F.normalize(4 + draw(2, 9, 4), dim=-1)
    similarities = 0.9 + 0.01 * draw(2, 2, 9, seed=1)
    encoder(rows, similarities)
    with torch.autocast("cpu", torch.bfloat16):
        encoder(rows, similarities)
    assert_same(*read)


def test_a_sequence_reads_nothing_after_its_video() -> None:
    encoder = randomize_(SequenceEncoder(2, 8)).eval()
    inside = inside_of(9, 6)
    rows = F.normalize(draw(2, 9, 4), dim=-1) * inside[..., None]
    similarities = draw(2, 2, 9, seed=1)
    found = encoder(rows, similarities, inside)
    assert_close(found[1:, :6], encoder(rows[1:, :6], similarities[1:, :, :6]))
    assert not found[1, 6:].any()
    poisoned = similarities.masked_fill(~inside[:, None], torch.nan)
    assert_same(encoder(rows, poisoned, inside), found)
    # Standardized similarities alone could not distinguish a matching video from another one.
    moved = encoder(rows, similarities + 1, inside)
    assert float((moved - found).detach().abs().mean()) > 0.05
