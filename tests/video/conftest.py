import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real_video():
    folder = os.environ.get("TMAPDIFF_DATA_ROOT")
    if not folder:
        pytest.skip("TMAPDIFF_DATA_ROOT names no folder with video/nasa_13013.mp4")
    return Path(folder) / "video" / "nasa_13013.mp4"
