"""Colors that print well, and figures without pyplot."""

from typing import TYPE_CHECKING, Any

from tmapdiff._core.checks import require

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Perceptually uniform, also in grayscale, and readable by the color-blind.
COLORMAP = "viridis"
TRUTH_COLOR = "white"  # always edged in black, or hatched
PREDICTION_COLOR = "#BB5566"

# Paul Tol's high-contrast colors, which color-blind readers and grayscale prints tell apart.
COLORS = ("#004488", "#DDAA33", "#BB5566", "#000000")
MARKERS = "osD^vP*"
LINES = ("-", "--", ":")  # methods that rank queries alike have the same curve


def new_figure(width: float, height: float, purpose: str) -> "Figure":
    """Make an empty figure; sizes are in inches."""
    matplotlib: Any = require("matplotlib.figure", extra="viz", purpose=purpose)
    # Not pyplot: a library must not open windows or keep figures alive.
    figure: Figure = matplotlib.Figure(figsize=(width, height), layout="constrained", dpi=120)
    return figure
