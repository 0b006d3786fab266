import os
from collections.abc import Iterator

import pytest
import torch

if not torch.cuda.is_available():
    # Without a GPU, kernels are tested in triton's interpreter, which must be chosen before triton
    # is imported.
    os.environ.setdefault("TRITON_INTERPRET", "1")

pytest.register_assert_rewrite("helpers.contracts", "helpers.assertions")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def _choices_of_the_tests_alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMAPDIFF_CACHE_DIR", str(tmp_path_factory.mktemp("choices")))
        yield
