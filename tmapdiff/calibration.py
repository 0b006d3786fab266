"""Measuring and calibrating a localizer's confidence in its best moment.

To decide which queries to leave unanswered, only the order of confidences matters:
`risk_coverage_curve`. To read them as probabilities of being right, their values matter:
`reliability_bins` measures them, and `PlattCalibrator` turns raw scores into probabilities.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import Self, override

from tmapdiff._core.checks import check_floating, check_int, check_range, check_shape, message
from tmapdiff._core.gathered import Gathered
from tmapdiff._core.newton import Derivatives, minimize
from tmapdiff.errors import ArgumentError


@dataclass(frozen=True)
class RiskCoverageCurve:
    """Accuracy when answering only the most confident queries, for every coverage.

    Attributes:
        coverage: Share of queries that are answered: 1 / Q, 2 / Q, ... 1; (Q,), float64.
        accuracy: Share of answers that are right, (Q,), float64.
    """

    coverage: Tensor
    accuracy: Tensor

    @property
    def area(self) -> float:
        """Area under the risk curve (AURC): mean of 1 - accuracy, in [0, 1]; lower is better."""
        return float((1 - self.accuracy).mean())

    def accuracy_at(self, coverage: float) -> float:
        """Return the accuracy, in [0, 1], of the fewest answers that reach a coverage.

        Args:
            coverage: Share of queries, in (0, 1]; `accuracy_at(1)` is the accuracy of all answers.

        Raises:
            ArgumentError: If `coverage` is outside (0, 1].
        """
        who = "RiskCoverageCurve.accuracy_at"
        share = check_range(who, "coverage", coverage, 0, 1, open_low=True)
        # Both are correctly rounded quotients, so equal values compare equal.
        return float(self.accuracy[int((self.coverage < share).sum())])


def risk_coverage_curve(confidence: Tensor, correct: Tensor) -> RiskCoverageCurve:
    """Compute the accuracy when answering only the most confident queries, for every coverage.

    Shows whether a confidence finds the queries that are better left to a human. Only its order
    matters. Ties are answered in random order: accuracies are expectations over it, and do not
    depend on the order of the queries.

    Args:
        confidence: Confidence in the best moment, in any unit; may be infinite.
        correct: Whether that moment is right, for example `best_ious(...)[:, 0] > 0.7`.

    Shape:
        - confidence: (Q,)
        - correct: (Q,), bool

    Raises:
        ShapeError: If a shape does not fit.
        ArgumentError: If there is no query, a confidence is NaN, `confidence` is not of a floating
            dtype, or `correct` is not bool.

    Source: Geifman and El-Yaniv, arXiv 1705.08500 (selective classification).

    Example:
        >>> confidence = torch.tensor([0.9, 0.2, 0.5, 0.4])
        >>> curve = risk_coverage_curve(confidence, torch.tensor([True, False, True, True]))
        >>> curve.accuracy_at(1), curve.accuracy_at(0.5)
        (0.75, 1.0)
    """
    confidence, correct = _checked("risk_coverage_curve", confidence, correct)
    _, size, right = _tie_groups(-confidence, correct)  # most confident first
    end, right_so_far = size.cumsum(0), right.cumsum(0)
    group = torch.repeat_interleave(size)  # of the query at each rank
    rank = torch.arange(1, len(confidence) + 1, device=confidence.device)
    # Whole groups, and part of the group at this rank.
    left = end[group] - rank
    hits = right_so_far[group] - (left * right[group]).double() / size[group]
    return RiskCoverageCurve(rank.double() / len(confidence), hits / rank)


@dataclass(frozen=True)
class ReliabilityBins:
    """Confidence and accuracy in nonempty bins of queries of similar confidence, ascending.

    Attributes:
        confidence: Mean confidence in each bin, (n,), float64.
        accuracy: Share of right answers in each bin, (n,), float64.
        count: Queries in each bin, (n,), int64.
    """

    confidence: Tensor
    accuracy: Tensor
    count: Tensor

    @property
    def calibration_error(self) -> float:
        """Expected calibration error (ECE) in [0, 1]: mean |accuracy - confidence| over queries."""
        gaps = (self.accuracy - self.confidence).abs()
        return float((gaps * self.count).sum() / self.count.sum())


def reliability_bins(
    confidence: Tensor, correct: Tensor, num_bins: int = 15, *, equal_mass: bool = True
) -> ReliabilityBins:
    """Compare confidence with accuracy, in bins of queries of similar confidence.

    If a localizer is calibrated, 70 % of its moments with confidence 0.7 are right. Equal
    confidences share a bin, so that the result does not depend on the order of queries; bins of
    equal mass are then only approximately equal.

    Args:
        confidence: Probability that the best moment is right.
        correct: Whether it is, for example `best_ious(...)[:, 0] > 0.7`.
        num_bins: Number of bins, before omitting empty ones.
        equal_mass: True for bins with equal numbers of queries, False for bins of equal width,
            closed at the top.

    Shape:
        - confidence: (Q,)
        - correct: (Q,), bool

    Raises:
        ShapeError: If a shape does not fit.
        ArgumentError: If there is no query, a confidence is outside [0, 1], `num_bins` is below 1,
            `confidence` is not of a floating dtype, or `correct` is not bool.

    Source: Naeini et al., AAAI 2015, and Guo et al., arXiv 1706.04599 (bins of equal width); Nixon
        et al., arXiv 1904.01685 (of equal mass).
    """
    who = "reliability_bins"
    check_int(who, "num_bins", num_bins, at_least=1)
    confidence, correct = _checked(who, confidence, correct, probabilities=True)
    value, size, right = _tie_groups(confidence, correct)
    if equal_mass:
        # A group of ties goes where its middle falls; doubled, to stay in integers.
        middle = 2 * size.cumsum(0) - size
        home = middle * num_bins // (2 * len(confidence))
    else:
        edges = torch.arange(1, num_bins, device=value.device, dtype=value.dtype) / num_bins
        home = torch.bucketize(value, edges)
    count = size.new_zeros(num_bins).index_add_(0, home, size)
    hits = right.new_zeros(num_bins).index_add_(0, home, right)
    total = value.new_zeros(num_bins).index_add_(0, home, value * size)
    used = count > 0
    count = count[used]
    return ReliabilityBins(total[used] / count, hits[used].double() / count, count)


class CalibrationMetrics(Gathered):
    """Calibration and selective accuracy over a data set, collected batch by batch, in percent.

    ECE is the expected calibration error with bins of equal mass, ECE-width with bins of equal
    width; Brier is the mean squared difference between confidence and truth; AURC is the mean risk
    over all coverages. For all four, lower is better. Accuracy@0.8 is the share of right answers
    among the most confident 80 % of queries, Accuracy@1.0 among all; Gain@0.8 is their difference,
    in points.

    Args:
        num_bins: Bins of the two ECEs.
        coverage: Share of queries that are answered, in (0, 1].

    Raises:
        ArgumentError: If `num_bins` is below 1 or `coverage` is outside (0, 1].

    Source: `reliability_bins` and `risk_coverage_curve`; Brier, 1950.

    Example:
        >>> metrics = CalibrationMetrics(num_bins=1, coverage=0.5)
        >>> metrics.update(torch.tensor([1.0, 0.5]), torch.tensor([True, False]))
        >>> metrics.compute()["ECE"], metrics.compute()["Gain@0.5"]
        (25.0, 50.0)
    """

    def __init__(self, num_bins: int = 15, coverage: float = 0.8) -> None:
        super().__init__()
        who = "CalibrationMetrics"
        self.num_bins = check_int(who, "num_bins", num_bins, at_least=1)
        self.coverage = check_range(who, "coverage", coverage, 0, 1, open_low=True)

    def update(self, confidence: Tensor, correct: Tensor) -> None:
        """Add queries; `confidence`, `correct` and errors are as in `reliability_bins`."""
        confidence, correct = _checked(
            "CalibrationMetrics", confidence, correct, probabilities=True, at_least=0
        )
        # Copies, as the caller may reuse the memory.
        self._rows.append((confidence.to("cpu", copy=True), correct.to("cpu", copy=True)))

    def compute(self) -> dict[str, float]:
        """Compute all metrics over the queries so far, in percent.

        Raises:
            ArgumentError: If there were no queries.
        """
        confidence, correct = self._columns()
        mass = reliability_bins(confidence, correct, self.num_bins)
        width = reliability_bins(confidence, correct, self.num_bins, equal_mass=False)
        curve = risk_coverage_curve(confidence, correct)
        everything, some = curve.accuracy_at(1), curve.accuracy_at(self.coverage)
        return {
            "ECE": 100 * mass.calibration_error,
            "ECE-width": 100 * width.calibration_error,
            "Brier": 100 * float((confidence - correct.double()).square().mean()),
            "AURC": 100 * curve.area,
            "Accuracy@1.0": 100 * everything,
            f"Accuracy@{self.coverage}": 100 * some,
            f"Gain@{self.coverage}": 100 * (some - everything),
        }


class PlattCalibrator(nn.Module):
    """Turns raw confidences into probabilities of being right, by logistic regression.

    Takes one confidence per query, or several features that indicate it, such as the best score,
    its lead over the second, and the agreement of several samples. Fit it on queries that are used
    neither for training nor for testing. Weights are saved with `state_dict`.

    The targets are Platt's, (right + 1) / (right + 2) and 1 / (wrong + 2) instead of 1 and 0, which
    keeps the fit finite if features separate right from wrong, or all answers are right. Constant
    features get weight 0; equal features get equal weights.

    Args:
        num_features: Features per query.

    Raises:
        ArgumentError: If `num_features` is below 1.

    Source: Platt, "Probabilistic outputs for support vector machines", 1999.

    Example:
        >>> raw, correct = torch.tensor([3.0, 1.0, -1.0, -3.0]), torch.tensor([1, 1, 0, 0]).bool()
        >>> calibrator = PlattCalibrator().fit(raw, correct)
        >>> calibrator(torch.tensor([0.0]))
        tensor([0.5000], dtype=torch.float64)
    """

    penalty = 1e-6  # on squared weights of unit-variance features, relative to the mean loss

    weight: Tensor
    bias: Tensor

    def __init__(self, num_features: int = 1) -> None:
        super().__init__()
        who = "PlattCalibrator"
        self.num_features = check_int(who, "num_features", num_features, at_least=1)
        # NaN until fitted or loaded.
        self.register_buffer("weight", torch.full((num_features,), torch.nan).double())
        self.register_buffer("bias", torch.tensor(torch.nan).double())

    @torch.no_grad()
    @torch.inference_mode(False)  # inference tensors could not be loaded into later
    def fit(self, features: Tensor, correct: Tensor) -> Self:
        """Fit to queries with known answers, and return `self`.

        Args:
            features: Raw confidences, in any unit.
            correct: Whether the best moment is right, for example `best_ious(...)[:, 0] > 0.7`.

        Shape:
            - features: (Q, F), or (Q,) if there is one feature
            - correct: (Q,), bool

        Raises:
            ShapeError: If a shape does not fit.
            ArgumentError: If there is no query, a feature is not finite, `features` is not of a
                floating dtype, or `correct` is not bool.
        """
        features = self._checked(features)
        _check_correct("PlattCalibrator", correct, len(features), at_least=1)
        correct = correct.to(features.device)

        constant = (features == features[0]).all(0)
        mean = features.mean(0)
        scale = features.std(0, correction=0)
        scale = scale.masked_fill(constant | (scale == 0), 1)
        ones = features.new_ones(len(features), 1)
        inputs = torch.cat([((features - mean) / scale).masked_fill(constant, 0), ones], dim=1)
        right, wrong = correct.sum().double(), (~correct).sum().double()
        targets = torch.where(correct, (right + 1) / (right + 2), 1 / (wrong + 2))
        penalty = inputs.new_full((inputs.shape[1],), self.penalty)
        penalty[-1] = 0

        def loss(weights: Tensor) -> Derivatives:
            logits = inputs @ weights
            value = F.binary_cross_entropy_with_logits(logits, targets)
            value = value + (penalty * weights.square()).sum() / 2
            chance = logits.sigmoid()
            gradient = inputs.T @ (chance - targets) / len(inputs) + penalty * weights
            hessian = (inputs.T * (chance * (1 - chance))) @ inputs / len(inputs)
            # Also for the bias, which has no penalty, to keep the system solvable.
            hessian.diagonal().add_(self.penalty)
            return Derivatives(value, gradient, hessian)

        solution, _ = minimize(loss, torch.zeros_like(penalty), smallest_gain=1e-16)

        weight = solution[:-1] / scale
        self.weight = weight.to(self.weight)
        self.bias = (solution[-1] - (weight * mean).sum()).to(self.bias)
        return self

    def forward(self, features: Tensor) -> Tensor:
        """Return the probability that the best moment is right, from `features` as in `fit`.

        Shape:
            - returns: (Q,), float64, in [0, 1]

        Raises:
            ShapeError: If a shape does not fit.
            ArgumentError: If weights are neither fitted nor loaded, a feature is not finite, or
                `features` is not of a floating dtype.
        """
        features = self._checked(features)
        if bool(self.bias.isnan()):
            raise ArgumentError(
                message("PlattCalibrator", "fitted weights", "none", "Call fit(...) first.")
            )
        return (features @ self.weight.double() + self.bias.double()).sigmoid()

    @override
    def extra_repr(self) -> str:
        return f"num_features={self.num_features}"

    def _checked(self, features: Tensor) -> Tensor:
        who = "PlattCalibrator"
        if isinstance(features, Tensor) and features.dim() == 1 and self.num_features == 1:
            features = features[:, None]
        check_shape(who, "features", features, "Q F", {"F": self.num_features})
        check_floating(who, "features", features)
        _check_rows(who, "finite features", features, features.isfinite())
        return features.double()


def _checked(
    who: str,
    confidence: Tensor,
    correct: Tensor,
    *,
    probabilities: bool = False,
    at_least: int = 1,
) -> tuple[Tensor, Tensor]:
    """Return `confidence` in float64 and `correct` on its device, or raise."""
    sizes = check_shape(who, "confidence", confidence, "Q")
    check_floating(who, "confidence", confidence)
    _check_correct(who, correct, sizes["Q"], at_least=at_least)
    confidence = confidence.detach().double()
    if probabilities:
        inside = (confidence >= 0) & (confidence <= 1)
        hint = "Turn raw scores into probabilities with PlattCalibrator."
        _check_rows(who, "confidence in [0, 1]", confidence, inside, hint)
    else:
        _check_rows(who, "confidence without NaN", confidence, ~confidence.isnan())
    return confidence, correct.to(confidence.device)


def _check_correct(who: str, correct: Tensor, queries: int, *, at_least: int) -> None:
    check_shape(who, "correct", correct, "Q", {"Q": queries})
    if correct.dtype != torch.bool:
        hint = "Compare first, for example best_ious(...)[:, 0] > 0.7."
        raise ArgumentError(message(who, "correct of dtype torch.bool", correct.dtype, hint))
    if queries < at_least:
        raise ArgumentError(message(who, "at least one query", "none"))


def _check_rows(who: str, expected: str, values: Tensor, good: Tensor, hint: str = "") -> None:
    if not bool(good.all()):
        row = (~good).nonzero()[0].tolist()[0]
        got = f"{values[~good][0].item():g} in row {row}"
        raise ArgumentError(message(who, expected, got, hint))


def _tie_groups(values: Tensor, correct: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the distinct values, ascending, with counts of queries and of right answers."""
    distinct, group, size = torch.unique(values, return_inverse=True, return_counts=True)
    return distinct, size, torch.zeros_like(size).index_add_(0, group, correct.long())
