"""The definition against the papers, and `gate_features` with any backend."""

import math

import pytest
import torch
from helpers.assertions import assert_same, refuses
from helpers.contracts import draw, triangle

from tmapdiff.errors import ArgumentError, ConfigError, ShapeError
from tmapdiff.kernels import gate
from tmapdiff.kernels.gate import gate_features

ROWS, COLUMNS = 5, 3


def test_equals_scalar_arithmetic() -> None:
    convolved = 3 * draw(2, 3, 2, 2, dtype=torch.float64)
    result = gate_features(convolved, channels=2)
    for place in ((b, c, n, a) for b in (0, 1) for c in (0, 1) for n in (0, 1) for a in (0, 1)):
        sample, _, *cell = place
        feature = float(convolved[place])
        gate = float(convolved[sample, 2, cell[0], cell[1]])
        assert float(result[place]) == pytest.approx(max(feature, 0) / (1 + math.exp(-gate)))


def test_one_gate_is_the_same_gate_for_every_channel() -> None:
    convolved, mask = draw(2, 5, ROWS, COLUMNS), triangle(ROWS, COLUMNS)
    repeated = torch.cat([convolved[:, :4], convolved[:, 4:].expand(-1, 4, -1, -1)], dim=1)
    shared = gate_features(convolved, mask, channels=4)
    assert_same(gate_features(repeated, mask, channels=4), shared)


def test_layout_stays() -> None:
    convolved = draw(2, 5, ROWS, COLUMNS).to(memory_format=torch.channels_last)
    for mask in (None, triangle(ROWS, COLUMNS)):
        result = gate_features(convolved, mask, channels=4)
        assert result.is_contiguous(memory_format=torch.channels_last)


def test_refuses() -> None:
    maps = {"convolved": draw(2, 5, ROWS, COLUMNS)}
    for changes, kind, text in (
        ({"channels": 0}, ArgumentError, "channels to be an integer >= 1, got 0."),
        ({"convolved": draw(2, 5, ROWS)}, ShapeError, "map features of shape (B, C, N"),
        ({"convolved": draw(2, 6, ROWS, COLUMNS)}, ShapeError, "4 channels and a gate of 1 or 4"),
        ({"mask": triangle(ROWS, 2)}, ShapeError, "mask of shape (N_k, A) with N_k = 5"),
    ):
        with refuses(kind, f"gate_features: expected {text}"):
            gate_features(**{**maps, "channels": 4, **changes})
    with refuses(ConfigError, "kernels.gate: expected inputs that backend 'triton' supports"):
        gate_features(maps["convolved"].double(), channels=4, backend="triton")


def test_small_maps_are_left_to_the_reference(monkeypatch) -> None:
    chosen = []

    def noting(name):
        run = getattr(gate, name).gate_features
        return lambda *given: chosen.append(name) or run(*given)

    for name in ("eager", "reference"):
        monkeypatch.setattr(getattr(gate, name), "gate_features", noting(name))
    monkeypatch.setattr(gate, "_FEW_WITH_GRADIENT", 3 * 5 * 4)
    monkeypatch.setattr(gate, "_FEW", 2 * 3 * 5 * 4)
    for batch, without_gradient in ((1, "reference"), (2, "eager")):
        given = draw(batch, 3, 5, 4).requires_grad_()
        gate.gate_features(given, channels=2)
        with torch.no_grad():
            gate.gate_features(given, channels=2)
        gate.gate_features(given[:, :, :4].detach(), channels=2)
        gate.gate_features(given[:, :, :4], channels=2, backend="eager")
        assert chosen == ["eager", without_gradient, "reference", "eager"]
        chosen.clear()
