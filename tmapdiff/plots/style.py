"""What all pictures share: colours that print well, and figures without pyplot."""

from typing import TYPE_CHECKING, Any

from tmapdiff._checks import require

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Perceptually uniform, the same in print, and readable by the colour-blind.
COLORMAP = "viridis"
TRUTH_COLOR = "white"
PREDICTION_COLOR = "#ff5a36"

# Told apart by the colour-blind too (Okabe and Ito).
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
MARKERS = "osD^vP*"
LINES = ("-", "--", ":")  # methods of equal order have the same curve


def new_figure(width: float, height: float, purpose: str) -> "Figure":
    """Make an empty figure, of so many inches.

    Raises:
        MissingDependencyError: If matplotlib is not installed.
    """
    matplotlib: Any = require("matplotlib.figure", extra="viz", purpose=purpose)
    # Not pyplot: a library must not open windows or keep figures alive.
    figure: Figure = matplotlib.Figure(figsize=(width, height), layout="constrained", dpi=120)
    return figure
