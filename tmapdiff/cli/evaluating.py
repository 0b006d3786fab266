"""What `train` and `evaluate` share: the data, and telling what was found."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tmapdiff.cli.options import FormatName, SplitName
from tmapdiff.cli.output import Output, metrics_table

if TYPE_CHECKING:
    from tmapdiff.recipes import LocalizationData, Results


def load_data(
    train: Path | None,
    test: Path | None,
    *,
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
) -> None:
    """Write the results into a folder and print them.

    Raises:
        FileError: If a file cannot be written.
    """
    from tmapdiff.provenance import describe_run

    metrics_table(output, results.rows, f"{data.store.description}; percent")
    details = {
        "features": data.store.description,
        "evaluated_on": str(data.test.report),
        **details,
        **describe_run(),
    }
    names = [*results.write(folder, details), *also_written]
    output.line(f"written to {folder}: {', '.join(names)}")
    output.document({**results.summary(), **details, "output": folder, "files": names})
