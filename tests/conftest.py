import gc
import os
from collections.abc import Iterator
from pathlib import Path

from tmapdiff.spinning import spin_briefly

spin_briefly()

import pytest
import torch
from helpers.network import guard_network
from helpers.processes import end_started
from helpers.tiers import fail_if_unmarked, slow_means, watch_slow_means

if not torch.cuda.is_available():
    # Without a GPU, kernels are tested in triton's interpreter, which must be chosen before triton
    # is imported.
    os.environ.setdefault("TRITON_INTERPRET", "1")
# Float32 is what is compared: on a GPU, torch's convolutions would be in TF32.
torch.backends.cudnn.allow_tf32 = False

TESTS = Path(__file__).parent
watch_slow_means()
pytest.register_assert_rewrite("helpers.contracts", "helpers.assertions")


@pytest.fixture(scope="session", autouse=True)
def _environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    guard_network()
    with pytest.MonkeyPatch.context() as patch:
        # What processes of the tests do is up to them; at least they do not ask the hub.
        patch.setenv("HF_HUB_OFFLINE", "1")
        # They import this library and the helpers from wherever they run.
        places = [TESTS, TESTS.parent, os.environ.get("PYTHONPATH", "")]
        patch.setenv("PYTHONPATH", os.pathsep.join(map(str, places)))
        patch.setenv("TMAPDIFF_CACHE_DIR", str(tmp_path_factory.mktemp("choices")))
        yield


def pytest_itemcollected(item: pytest.Item) -> None:
    # What whole files of real datasets show.
    if {"charades_root", "data_root"} & set(getattr(item, "fixturenames", ())):
        item.add_marker("exhaustive")


@pytest.fixture(scope="session")
def charades_root() -> Path:
    return _named_folder("TMAPDIFF_CHARADES_ROOT", "the Charades files")


@pytest.fixture(scope="session")
def data_root() -> Path:
    return _named_folder("TMAPDIFF_DATA_ROOT", "didemo, activitynet, tacos, video, ...")


def _named_folder(variable: str, content: str) -> Path:
    if not os.environ.get(variable):
        pytest.skip(f"{variable} names no folder with {content}")
    return Path(os.environ[variable])


def pytest_collection_finish() -> None:
    gc.freeze()  # or each collection of garbage looks at all that was imported


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    slow_means()  # those of imports and other tests are not this one's


@pytest.fixture(autouse=True)
def _no_process_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    end_started()
    fail_if_unmarked(request.node)


@pytest.fixture(autouse=True)
def _seed() -> None:
    # The CPU's generator alone where nothing else is used: all of them take 0.5 ms.
    seed = torch.manual_seed if torch.cuda.is_available() else torch.default_generator.manual_seed
    seed(0)
