"""Data options of `train` and `evaluate`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tmapdiff._core.checks import message
from tmapdiff.cli.options import (
    DatasetOption,
    ProtocolName,
    SecondsPerFeatureOption,
    SplitName,
    refuse_idle,
)
from tmapdiff.errors import FileError

if TYPE_CHECKING:
    from tmapdiff.recipes import LocalizationData


@dataclass(frozen=True)
class DataOptions:
    """Options of data other than files of queries. Without any, synthetic data are used."""

    dataset: DatasetOption = None
    root: Annotated[
        Path | None,
        "DIR",
        "Folder of the dataset with its published file names; for 'timeline', the folder of "
        "Charades.",
    ] = None
    test_split: Annotated[SplitName, "Split of --root to evaluate on."] = "test"
    features: Annotated[
        list[str] | None,
        "STORE",
        "An HDF5 file, or a folder of .npy, .npz or .pt files; several are concatenated. For "
        "Charades-STA also 'timeline': features simulated from its action annotations.",
    ] = None
    seconds_per_feature: SecondsPerFeatureOption = None
    protocol: Annotated[
        ProtocolName | None,
        "Metrics: rank counts an IoU above a threshold (2D-TAN); qvhighlights counts an IoU of at "
        "least the threshold, with mAP for queries with several moments (moment_detr). [default: "
        "didemo for DiDeMo, otherwise rank]",
    ] = None
    limit: Annotated[int | None, "Use only this many queries of each split."] = None

    def check(self, train: Path | None, tests: Sequence[Path], queries_option: str) -> None:
        """Refuse wrong usage and missing files before torch is imported."""
        from tmapdiff.data import find_split
        from tmapdiff.data.charades import TIMELINE, check_charades_actions

        stores = self.features or []
        parts: list[tuple[Path, SplitName]] = [] if train is None else [(train, "train")]
        parts += [(test, self.test_split) for test in tests]
        of_root = any(place == self.root for place, _ in parts) or TIMELINE in stores
        folders = [place for place in tests if not place.is_file()]
        users_of_root = "queries to take from it or --features timeline"
        refuse_idle(
            ("--features", stores and not parts, f"{queries_option} or --root"),
            ("--root", self.root and not of_root, users_of_root),
            ("--test-split", self.test_split != "test" and not folders, "a folder of queries"),
            ("--seconds-per-feature", self.seconds_per_feature and not stores, "--features"),
        )
        named = {self.dataset, self.protocol}
        if "didemo" in named and len(named - {None}) > 1:
            text = "the protocol of DiDeMo is didemo, and no other dataset has it."
            raise typer.BadParameter(text, param_hint="'--protocol'")
        if parts and not stores:
            raise typer.BadParameter("pass the features of the videos.", param_hint="'--features'")
        files = [
            find_split(place, None if place.is_file() else split, self.dataset)
            for place, split in parts
        ]
        for store in stores:
            if store == TIMELINE:
                check_charades_actions(self.root or files[0].path.parent)
            elif not Path(store).exists():
                expected = "an HDF5 file, or a folder of .npy, .npz or .pt files"
                raise FileError(message("--features", expected, f"nothing at {store}"))

    def load(
        self, train: Path | None, test: Path | None, holdout: float | None = None
    ) -> "LocalizationData":
        """Load the data."""
        from tmapdiff.recipes import LocalizationData

        if train is None and test is None:
            by_default: ProtocolName = "didemo" if self.dataset == "didemo" else "rank"
            data = LocalizationData.make_up(self.protocol or by_default)
        else:
            data = LocalizationData.load(
                train,
                test,
                features=self.features or (),
                format=self.dataset,
                test_split=self.test_split,
                seconds_per_feature=self.seconds_per_feature,
                charades_root=self.root,
                protocol=self.protocol,
            )
        if holdout is not None:
            data = data.hold_out(holdout)
        return data.with_features_only().limit(self.limit)
