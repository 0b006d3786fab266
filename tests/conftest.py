import pytest
import torch

pytest.register_assert_rewrite("helpers.contracts", "helpers.assertions")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
