"""Random grids and moments for hypothesis."""

from hypothesis import strategies as st

from tmapdiff import MapGrid


@st.composite
def grids(draw: st.DrawFn) -> MapGrid:
    num_scales = draw(st.integers(1, 3))
    coarsest = draw(st.integers(1, 6))
    num_anchors = draw(st.integers(1, coarsest))
    return MapGrid(coarsest * 2 ** (num_scales - 1), num_anchors, num_scales)


@st.composite
def moments_in(draw: st.DrawFn, seconds: float) -> tuple[float, float]:
    """A moment that starts inside a video of some seconds; it may end past the video."""
    start = draw(st.floats(0, 0.95)) * seconds
    return start, start + draw(st.floats(0.01, 1.2)) * seconds
