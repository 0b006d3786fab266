import pytest
from helpers.training import make_dataset

from tmapdiff import MomentDataset


@pytest.fixture(scope="session")
def dataset() -> MomentDataset:
    return make_dataset()
