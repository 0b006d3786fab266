import pytest
from helpers.kernels import Allocations

from tmapdiff.kernels import _alignment


@pytest.fixture
def allocations(monkeypatch: pytest.MonkeyPatch) -> Allocations:
    return Allocations(monkeypatch)


@pytest.fixture
def aligned_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Align rows of products to 16 numbers, as on a GPU."""
    monkeypatch.setattr(_alignment, "_ALIGNED", {"cpu": 16, "cuda": 16})


@pytest.fixture(params=[False, True], ids=["as it comes", "aligned"])
def aligned(request: pytest.FixtureRequest) -> bool:
    """Whether rows are aligned."""
    if request.param:
        request.getfixturevalue("aligned_on_the_cpu")
    return bool(request.param)
