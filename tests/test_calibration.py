import io
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from helpers.assertions import assert_close, assert_same, refuses
from hypothesis import given, settings
from hypothesis import strategies as st

from tmapdiff import CalibrationMetrics, PlattCalibrator, reliability_bins, risk_coverage_curve
from tmapdiff.errors import ArgumentError, ShapeError

quick = settings(max_examples=60, deadline=None)
# Few distinct values, for many ties, which floats represent exactly.
levels = st.integers(0, 8).map(lambda step: step / 8)
queries = st.lists(st.tuples(levels, st.booleans()), min_size=1, max_size=24)


def tensors(rows) -> tuple[torch.Tensor, torch.Tensor]:
    confidence = torch.tensor([row[0] for row in rows], dtype=torch.float64)
    return confidence, torch.tensor([row[1] for row in rows], dtype=torch.bool)


def simulated(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Confidences, and answers that are right with these probabilities."""
    generator = torch.Generator().manual_seed(seed)
    confidence = torch.rand(count, generator=generator, dtype=torch.float64)
    return confidence, torch.rand(count, generator=generator, dtype=torch.float64) < confidence


# Risk and coverage


@quick
@given(queries)
def test_curve_equals_a_plain_loop(rows):
    curve = risk_coverage_curve(*tensors(rows))
    assert_close(curve.coverage, torch.arange(1, len(rows) + 1).double() / len(rows))
    for answered in range(1, len(rows) + 1):
        # Expected hits, with the probability that each query is answered.
        hits = Fraction(0)
        for confidence, correct in rows:
            before = sum(other > confidence for other, _ in rows)
            equal = sum(other == confidence for other, _ in rows)
            chance = min(max(Fraction(answered - before, equal), Fraction(0)), Fraction(1))
            hits += chance * correct
        assert float(curve.accuracy[answered - 1]) == pytest.approx(float(hits / answered))
    risks = [1 - float(accuracy) for accuracy in curve.accuracy]
    assert curve.area == pytest.approx(sum(risks) / len(rows))


@quick
@given(queries)
def test_only_the_order_of_confidences_counts_for_the_curve(rows):
    confidence, correct = tensors(rows)
    curve = risk_coverage_curve(confidence, correct)
    assert_same(risk_coverage_curve(1000 * confidence - 7000, correct).accuracy, curve.accuracy)
    infinite = confidence.masked_fill(confidence == confidence.max(), torch.inf)
    infinite = infinite.masked_fill(confidence == confidence.min(), -torch.inf)
    assert_same(risk_coverage_curve(infinite, correct).accuracy, curve.accuracy)


@pytest.mark.parametrize("count", [1, 3, 10, 3720])
def test_accuracy_at_takes_the_fewest_queries_that_make_up_the_share(count):
    correct = torch.rand(count) < 0.5
    curve = risk_coverage_curve(torch.arange(count, 0, -1).double(), correct)
    for percent in range(1, 101):
        answered = -(-percent * count // 100)
        expected = correct[:answered].double().mean().item()
        assert curve.accuracy_at(percent / 100) == pytest.approx(expected), percent


# Reliability


def bins_by_loops(rows, num_bins, equal_mass):
    """Mean confidence, accuracy and count of nonempty bins."""
    members = [[] for _ in range(num_bins)]
    for confidence, correct in rows:
        if equal_mass:
            below = sum(other < confidence for other, _ in rows)
            equal = sum(other == confidence for other, _ in rows)
            home = math.floor((below + Fraction(equal, 2)) / len(rows) * num_bins)
        else:
            home = max(math.ceil(Fraction(confidence) * num_bins) - 1, 0)
        members[home].append((confidence, correct))
    return [
        (sum(c for c, _ in some) / len(some), sum(y for _, y in some) / len(some), len(some))
        for some in members
        if some
    ]


@quick
@given(queries, st.integers(1, 20), st.booleans())
def test_bins_equal_a_plain_loop(rows, num_bins, equal_mass):
    bins = reliability_bins(*tensors(rows), num_bins, equal_mass=equal_mass)
    expected = bins_by_loops(rows, num_bins, equal_mass)
    assert bins.count.tolist() == [count for *_, count in expected]
    assert bins.confidence.tolist() == pytest.approx([mean for mean, _, _ in expected])
    assert bins.accuracy.tolist() == pytest.approx([accuracy for _, accuracy, _ in expected])
    gaps = sum(abs(mean - accuracy) * count for mean, accuracy, count in expected)
    assert bins.calibration_error == pytest.approx(gaps / len(rows))


def test_bins_of_equal_width_hold_their_upper_edge():
    confidence = torch.tensor([0.0, 0.2, 0.2000001, 1.0], dtype=torch.float64)
    bins = reliability_bins(confidence, torch.ones(4).bool(), 5, equal_mass=False)
    assert bins.count.tolist() == [2, 1, 1]


# Metrics


@quick
@given(queries, st.integers(1, 6), st.sampled_from([0.25, 0.8, 1.0]))
def test_metrics_equal_plain_loops(rows, num_bins, coverage):
    metrics = CalibrationMetrics(num_bins, coverage)
    metrics.update(*tensors(rows))
    found = metrics.compute()
    count = len(rows)
    for name, equal_mass in (("ECE", True), ("ECE-width", False)):
        bins = bins_by_loops(rows, num_bins, equal_mass)
        error = sum(abs(mean - accuracy) * some for mean, accuracy, some in bins) / count
        assert found[name] == pytest.approx(100 * error)
    brier = sum((confidence - correct) ** 2 for confidence, correct in rows) / count
    assert found["Brier"] == pytest.approx(100 * brier)
    curve = risk_coverage_curve(*tensors(rows))
    assert found["AURC"] == pytest.approx(100 * (1 - curve.accuracy.mean().item()))
    everything = 100 * sum(correct for _, correct in rows) / count
    assert found["Accuracy@1.0"] == pytest.approx(everything)
    some = 100 * curve.accuracy_at(coverage)
    assert found[f"Accuracy@{coverage}"] == pytest.approx(some)
    assert found[f"Gain@{coverage}"] == pytest.approx(some - everything)
    names = ["ECE", "ECE-width", "Brier", "AURC", "Accuracy@1.0", f"Accuracy@{coverage}"]
    assert list(found) == list(dict.fromkeys([*names, f"Gain@{coverage}"]))


def test_later_changes_of_a_batch_do_not_reach_the_metrics():
    confidence, correct = simulated(50)
    metrics = CalibrationMetrics()
    metrics.update(confidence, correct)
    before = metrics.compute()
    confidence.zero_()
    correct.zero_()
    assert metrics.compute() == before


def test_single_and_half_precision_and_gradients_are_fine():
    confidence, correct = simulated(50)
    for dtype in (torch.float32, torch.bfloat16):
        rounded = confidence.to(dtype).requires_grad_()
        exact, found = CalibrationMetrics(), CalibrationMetrics()
        exact.update(rounded.detach().double(), correct)
        found.update(rounded, correct)
        assert found.compute() == exact.compute()
        assert not risk_coverage_curve(rounded, correct).accuracy.requires_grad


# Platt


def newton_by_hand(features: np.ndarray, correct: np.ndarray) -> np.ndarray:
    """Unpenalized logistic regression on Platt's targets, the bias last."""
    right = int(correct.sum())
    wrong = len(correct) - right
    targets = np.where(correct, (right + 1) / (right + 2), 1 / (wrong + 2))
    inputs = np.hstack([features, np.ones((len(features), 1))])
    weights = np.zeros(inputs.shape[1])
    for _ in range(50):
        chance = 1 / (1 + np.exp(-inputs @ weights))
        curvature = inputs.T @ (inputs * (chance * (1 - chance))[:, None])
        weights += np.linalg.solve(curvature, inputs.T @ (targets - chance))
    return weights


def logistic(count: int, weights, bias: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weights = torch.tensor(weights, dtype=torch.float64)
    features = torch.randn(count, len(weights), generator=generator, dtype=torch.float64)
    chance = (features @ weights + bias).sigmoid()
    return features, torch.rand(count, generator=generator, dtype=torch.float64) < chance


@pytest.mark.parametrize("num_features", [1, 3])
def test_platt_equals_newton_s_method_in_numpy(num_features):
    features, correct = logistic(300, [1.0, -2.0, 0.0][:num_features], 0.5)
    calibrator = PlattCalibrator(num_features).fit(features, correct)
    expected = torch.from_numpy(newton_by_hand(features.numpy(), correct.numpy()))
    found = torch.cat([calibrator.weight, calibrator.bias[None]])
    # The penalty's part.
    assert (found - expected).abs().max() < 1e-4


def test_platt_recovers_a_known_logistic():
    features, correct = logistic(40_000, [1.5, -0.5], -0.7)
    calibrator = PlattCalibrator(2).fit(features, correct)
    assert calibrator.weight.tolist() == pytest.approx([1.5, -0.5], abs=0.05)
    assert float(calibrator.bias) == pytest.approx(-0.7, abs=0.05)
    fresh, truth = logistic(20_000, [1.5, -0.5], -0.7, seed=1)
    assert reliability_bins(calibrator(fresh), truth).calibration_error < 0.015


def test_platt_does_not_depend_on_units_or_on_order():
    features, correct = logistic(200, [1.0, -1.0], 0.3)
    expected = PlattCalibrator(2).fit(features, correct)(features)
    units, origin = torch.tensor([1e-6, 300.0]), torch.tensor([0.5, -1e4])
    other = features * units + origin
    assert_close(PlattCalibrator(2).fit(other, correct)(other), expected, torch.float32)
    order = torch.randperm(200)
    again = PlattCalibrator(2).fit(features[order], correct[order])
    assert_close(again(features), expected)


def test_platt_keeps_the_order_of_one_confidence_and_takes_it_as_a_row_or_column():
    features, correct = logistic(200, [1.0], 0.3)
    calibrator = PlattCalibrator().fit(features[:, 0], correct)
    found = calibrator(features[:, 0])
    assert_same(found, calibrator(features))
    assert_same(found.argsort(), features[:, 0].argsort())
    assert_same(PlattCalibrator().fit(features, correct)(features), found)


def test_platt_of_separable_confidences_is_finite_and_steep():
    raw = torch.linspace(-1, 1, 100)
    calibrator = PlattCalibrator().fit(raw, raw > 0)
    found = calibrator(raw)
    assert 0 < found[0] < 0.03
    assert 0.97 < found[-1] < 1
    # The targets' mean.
    assert float(found.mean()) == pytest.approx(0.5)
    assert calibrator.weight.isfinite().all()


@pytest.mark.parametrize("right", [True, False])
@pytest.mark.parametrize("count", [1, 5, 100_000])
def test_platt_of_all_right_or_all_wrong(right, count):
    calibrator = PlattCalibrator().fit(torch.randn(count), torch.full((count,), right))
    expected = (count + 1) / (count + 2) if right else 1 / (count + 2)
    found = calibrator(torch.zeros(1)).item()
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_platt_gives_constant_features_no_weight_and_equal_ones_a_share():
    features, correct = logistic(300, [1.0], 0.3)
    # The mean of 300 copies of one of these differs from the value by rounding.
    for value in (0.1, 1e8 / 3, 0.7):
        constant = torch.full_like(features, value)
        calibrator = PlattCalibrator(3).fit(torch.cat([features, constant, features], 1), correct)
        assert calibrator.weight[1] == 0
    alone = PlattCalibrator().fit(features, correct)
    expected = float(alone.weight) / 2
    assert calibrator.weight[::2].tolist() == pytest.approx([expected] * 2, rel=1e-4)


def test_platt_bears_outliers_and_features_all_but_equal():
    features, correct = logistic(2000, [3.0], 0.0)
    features = torch.cat([features, features + 1e-9 * torch.randn_like(features)], 1)
    features[0] = 1e6
    calibrator = PlattCalibrator(2).fit(features, correct)
    targets = correct.sum() / 2000
    assert float(calibrator(features).mean()) == pytest.approx(float(targets), abs=1e-3)


def test_platt_finds_the_least_loss_where_whole_steps_of_newton_s_method_diverge():
    values = [-0.81858777, 3.22242619, 0.376096671, -6.6273106, -597.432406, -200.463850]
    sizes, right = [26, 33, 194, 4487, 11, 89], [12, 0, 91, 0, 0, 0]
    raw = torch.tensor(values, dtype=torch.float64).repeat_interleave(torch.tensor(sizes))
    correct = torch.cat(
        [torch.arange(size) < some for size, some in zip(sizes, right, strict=True)]
    )
    found = PlattCalibrator().fit(raw, correct)(raw)
    total = len(raw)
    hits = sum(right)
    targets = torch.where(correct, (hits + 1) / (hits + 2), 1 / (total - hits + 2)).double()
    # Both derivatives of the loss, up to the penalty's part.
    assert abs(float((found - targets).mean())) < 1e-9
    assert abs(float(((found - targets) * raw / raw.std()).mean())) < 1e-4


def test_platt_gives_a_feature_whose_spread_underflows_no_weight():
    features, correct = logistic(300, [1.0], 0.3)
    calibrator = PlattCalibrator(2).fit(torch.cat([features, 1e-200 * features], 1), correct)
    assert_close(
        calibrator(features.expand(-1, 2)), PlattCalibrator().fit(features, correct)(features)
    )


def test_platt_saves_and_loads():
    features, correct = logistic(100, [1.0, 2.0], 0.3)
    calibrator = PlattCalibrator(2).fit(features, correct)
    stored = io.BytesIO()
    torch.save(calibrator.state_dict(), stored)
    stored.seek(0)
    loaded = PlattCalibrator(2)
    loaded.load_state_dict(torch.load(stored))
    assert_same(loaded(features), calibrator(features))
    assert repr(loaded) == "PlattCalibrator(num_features=2)"


def test_platt_fits_in_inference_mode_and_can_be_loaded_into_afterwards():
    features, correct = logistic(100, [1.0], 0.3)
    with torch.inference_mode():
        fitted = PlattCalibrator().fit(features.clone(), correct.clone())
    expected = PlattCalibrator().fit(features, correct)
    assert_same(fitted(features), expected(features))
    fitted.load_state_dict(expected.state_dict())


# Errors


def test_bad_confidences_and_truths_are_refused():
    confidence, correct = simulated(4)
    unknown = confidence.where(torch.arange(4) != 2, torch.nan)
    for args, kind, text in (
        ((confidence[:, None], correct), ShapeError, "confidence of shape (Q), got (4, 1)."),
        ((confidence, correct[:3]), ShapeError, "correct of shape (Q) with Q = 4, got (3,)."),
        ((torch.arange(4), correct), ArgumentError, "confidence of a floating dtype"),
        (
            (confidence, confidence),
            ArgumentError,
            "correct of dtype torch.bool, got torch.float64.",
        ),
        ((confidence[:0], correct[:0]), ArgumentError, "at least one query, got none."),
        ((unknown, correct), ArgumentError, "confidence without NaN, got nan in row 2."),
    ):
        with refuses(kind, f"risk_coverage_curve: expected {text}"):
            risk_coverage_curve(*args)
    hint = "Turn raw scores into probabilities with PlattCalibrator."
    for bad in (torch.nan, 1.5, -0.25, torch.inf):
        confidence[2] = bad
        expected = f"expected confidence in [0, 1], got {bad:g} in row 2. {hint}"
        with refuses(ArgumentError, f"reliability_bins: {expected}"):
            reliability_bins(confidence, correct)
        metrics = CalibrationMetrics()
        with refuses(ArgumentError, f"CalibrationMetrics: {expected}"):
            metrics.update(confidence, correct)
        with refuses(ArgumentError, "CalibrationMetrics: expected at least one query, got none."):
            metrics.compute()
    with refuses(ArgumentError, "reliability_bins: expected at least one query, got none."):
        reliability_bins(confidence[:0], correct[:0])


def test_bad_settings_are_refused():
    confidence, correct = simulated(4)
    with refuses(ArgumentError, "reliability_bins: expected num_bins to be an integer >= 1, got 0"):
        reliability_bins(confidence, correct, 0)
    with refuses(ArgumentError, "CalibrationMetrics: expected num_bins to be an integer >= 1, got"):
        CalibrationMetrics(1.5)
    for bad in (0, 80, -0.5):
        expected = f"expected coverage in (0, 1], got {bad!r}."
        with refuses(ArgumentError, f"CalibrationMetrics: {expected}"):
            CalibrationMetrics(coverage=bad)
        with refuses(ArgumentError, f"RiskCoverageCurve.accuracy_at: {expected}"):
            risk_coverage_curve(confidence, correct).accuracy_at(bad)


def test_bad_features_are_refused():
    features, correct = logistic(4, [1.0, 1.0], 0.0)
    calibrator = PlattCalibrator(2).fit(features, correct)
    before, fit = calibrator.weight.clone(), calibrator.fit
    for call, args, kind, text in (
        (PlattCalibrator, [0], ArgumentError, "num_features to be an integer >= 1, got 0."),
        (PlattCalibrator(2), [features], ArgumentError, "fitted weights, got none. Call fit(...)"),
        (calibrator, [features[:, :1]], ShapeError, "features of shape (Q, F) with F = 2"),
        (fit, [features[:, 0], correct], ShapeError, "features of shape (Q, F) with F = 2"),
        (fit, [features, correct[:3]], ShapeError, "correct of shape (Q) with Q = 4, got (3,)."),
        (fit, [features, correct.long()], ArgumentError, "correct of dtype torch.bool"),
        (fit, [features.long(), correct], ArgumentError, "features of a floating dtype"),
        (fit, [features[:0], correct[:0]], ArgumentError, "at least one query, got none."),
    ):
        with refuses(kind, f"PlattCalibrator: expected {text}"):
            call(*args)
    assert calibrator(features[:0]).shape == (0,)
    for bad in (torch.nan, torch.inf, -torch.inf):
        features[2, 1] = bad
        for call, args in ((fit, [features, correct]), (calibrator, [features])):
            with refuses(ArgumentError, f"expected finite features, got {bad:g} in row 2."):
                call(*args)
    assert_same(calibrator.weight, before)
