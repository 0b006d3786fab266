"""What `train` and `evaluate` share: the data, and telling what was found."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tmapdiff._core.checks import message
from tmapdiff.cli.options import FormatName, SplitName
from tmapdiff.cli.output import Output, metrics_table
from tmapdiff.errors import FileError

if TYPE_CHECKING:
    from tmapdiff.recipes import LocalizationData, Results


def check_places(
    train: Path | None,
    tests: Sequence[Path],
    *,
    root: Path | None,
    dataset: FormatName | None,
    test_split: SplitName,
    features: Sequence[str] | None,
    others: Mapping[str, Path | None] | None = None,
) -> None:
    """Refuse places that lack what is looked for there, before torch is imported.

    Raises:
        TmapdiffError: As `LocalizationData.load`.
    """
    from tmapdiff.data import find_split
    from tmapdiff.data.charades import TIMELINE, check_charades_actions

    parts: list[tuple[Path, SplitName]] = [(test, test_split) for test in tests]
    if train is not None:
        parts.insert(0, (train, "train"))
    files = [find_split(place, None if place.is_file() else part, dataset) for place, part in parts]
    for store in features or ():
        if store == TIMELINE and files:
            check_charades_actions(root or files[0].path.parent)
        elif not Path(store).exists():
            expected = "an HDF5 file, or a folder of .npy, of .npz or of .pt files"
            raise FileError(message("--features", expected, f"nothing at {store}"))
    for option, place in (others or {}).items():
        if place is not None and not place.exists():
            raise FileError(message(option, "a place to read from", f"nothing at {place}"))


def load_data(
    train: Path | None,
    test: Path | None,
    *,
    root: Path | None,
    dataset: FormatName | None,
    test_split: SplitName,
    features: list[str] | None,
    seconds_per_feature: float | None,
    holdout: float | None = None,
    limit: int | None = None,
) -> "LocalizationData":
    """Load what options name; without any place, made-up data.

    Raises:
        TmapdiffError: As `LocalizationData.load`.
    """
    from tmapdiff.recipes import LocalizationData

    if train is None and test is None:
        data = LocalizationData.make_up("didemo" if dataset == "didemo" else "rank")
    else:
        data = LocalizationData.load(
            train,
            test,
            features=features or (),
            format=dataset,
            test_split=test_split,
            seconds_per_feature=seconds_per_feature,
            charades_root=root,
        )
    if holdout is not None:
        data = data.hold_out(holdout)
    data = data.with_features_only()
    return data if limit is None else data.limit(limit)


def report(
    output: Output,
    results: "Results",
    data: "LocalizationData",
    folder: Path,
    details: Mapping[str, Any],
    also_written: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Write the results into a folder, print them, and return the document for `--json`.

    Raises:
        FileError: If a file cannot be written.
    """
    from tmapdiff.provenance import describe_run

    metrics_table(output, results.rows, f"{data.store.description}; percent")
    details = {
        "features": data.store.description,
        "evaluated_on": data.evaluated_on,
        "annotations": {part: str(path) for part, path in data.files.items()},
        **details,
        **describe_run(),
    }
    names = [*results.write(folder, details), *also_written]
    output.line(f"written to {folder}: {', '.join(names)}")
    return {**results.summary(), **details, "output": folder, "files": names}
