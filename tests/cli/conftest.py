import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from accelerate.state import AcceleratorState
from helpers.datasets import query_line, write_charades, write_lines
from helpers.videos import number_image, write_video

from tmapdiff.cli import main

QUICK = ["--preset", "nano", "--epochs", "1", "--device", "cpu"]
ENCODER = ["--model", "test_resnet", "--random-weights"]  # timm's smallest


@dataclass(frozen=True)
class Answer:
    code: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.out)
        return found


@pytest.fixture
def charades(tmp_path: Path) -> Path:
    return write_charades(tmp_path / "charades")


@pytest.fixture
def queries(tmp_path: Path) -> Callable[..., Path]:
    """Write queries about videos of 30 s, as JSON lines."""

    def write(name: str, *videos: str, times: int = 2) -> Path:
        lines = (
            query_line(f"{video}{n}", video, [[n, n + 9]], f"a person {n}.", 30.0)
            for video in videos
            for n in range(times)
        )
        return write_lines(tmp_path / name, lines)

    return write


def _quiet_main(arguments: list[object]) -> int:
    AcceleratorState._reset_state(reset_partial_state=True)
    return main([str(argument) for argument in arguments])


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    """Run the command line in this process, capturing all output."""

    def run(*arguments: object) -> Answer:
        capfd.readouterr()
        code = _quiet_main(list(arguments))
        shown = capfd.readouterr()
        assert "Traceback" not in shown.err
        return Answer(code, shown.out, shown.err)

    return run


@pytest.fixture
def passes(run: Callable[..., Answer]) -> Callable[..., Answer]:
    """Run a command that succeeds with exit code 0."""

    def passes(*arguments: object) -> Answer:
        found = run(*arguments)
        assert found.code == 0, found.err
        return found

    return passes


@pytest.fixture
def refused(run: Callable[..., Answer]) -> Callable[..., str]:
    """Run a command that fails with exit code 1 and one line, and return that."""

    def refused(*arguments: object) -> str:
        found = run(*arguments)
        assert (found.code, found.out, found.err.count("\n")) == (1, "", 1), found.err
        assert found.err.startswith("error: ")
        return found.err.removeprefix("error: ").rstrip("\n")

    return refused


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a training run on synthetic data."""
    output = tmp_path_factory.mktemp("run") / "output"
    assert _quiet_main(["train", *QUICK, "--limit", 16, "--output", output]) == 0
    return output


@dataclass(frozen=True)
class Corpus:
    """Videos of 8 s with queries, and their features, 2 per second."""

    videos: Path
    train: Path
    test: Path
    features: Path
    encoder: Path
    pipeline: Path


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    root = tmp_path_factory.mktemp("corpus")
    ids = ("one", "two", "three")
    (root / "videos").mkdir()
    for index, video in enumerate(ids):
        images = [number_image(8 * index + second) for second in range(8)]
        write_video(root / "videos" / f"{video}.mp4", list(range(9)), images=images)
    for split, chosen in (("train", ids[:2]), ("test", ids[2:])):
        lines = (
            query_line(f"{video}{n}", video, [[n, n + 3]], f"the number {n} is shown", 8.0)
            for video in chosen
            for n in range(4)
        )
        write_lines(root / f"{split}.jsonl", lines)
    made = Corpus(root / "videos", root / "train.jsonl", root / "test.jsonl", root / "features.h5",
                  root / "encoder", root / "run" / "pipeline")  # fmt: skip
    extract = ["extract", made.videos, *ENCODER, "--out", made.features, "--fps", 2]
    assert _quiet_main([*extract, "--save-encoder", made.encoder]) == 0
    train = ["train", *QUICK, "--train", made.train, "--test", made.test, "--output", root / "run"]
    more = ["--features", made.features, "--frame-encoder", made.encoder]
    with pytest.MonkeyPatch.context() as patch:
        _draw_empty_figures(patch)
        assert _quiet_main([*train, *more]) == 0
    return made


def _draw_empty_figures(patch: pytest.MonkeyPatch) -> None:
    from matplotlib.figure import Figure

    empty = Figure(figsize=(1, 1))
    patch.setattr("tmapdiff.recipes.evaluation.draw_queries", lambda *_, **__: empty)


@pytest.fixture(autouse=True)
def _small_plots(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Draw an empty figure as maps.png of evaluations; only `finished` has a real one."""
    if "run" in request.fixturenames:
        _draw_empty_figures(monkeypatch)
