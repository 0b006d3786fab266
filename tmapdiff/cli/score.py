"""`tmapdiff score`: compute metrics of a submission file."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from tmapdiff.cli.options import DatasetOption
from tmapdiff.cli.output import Output, metrics_table

EXAMPLES = """
tmapdiff score predictions.jsonl --test highlight_val_release.jsonl --protocol qvhighlights
tmapdiff score predictions.jsonl --test charades_sta_test.txt --json
"""


def score(
    console: Output,
    predictions: Annotated[
        Path,
        typer.Argument(
            metavar="PREDICTIONS",
            help="Submission file of moment_detr, or predictions.jsonl of train or evaluate.",
        ),
    ],
    test: Annotated[Path, "FILE", "The annotated queries."],
    dataset: DatasetOption = None,
    protocol: Annotated[
        Literal["rank", "qvhighlights"],
        "Metrics: rank counts an IoU above a threshold (2D-TAN); qvhighlights counts an IoU of at "
        "least the threshold, with mAP and highlights (moment_detr).",
    ] = "rank",
) -> None:
    """Score a file of answers to annotated queries, from this library or another program.

    Each query needs one answer. For DiDeMo, Rank n@m uses the annotators' consensus.
    """
    from tmapdiff.data import find_split, keep_consensus, read_submission
    from tmapdiff.evaluation import evaluate_predictions

    file = find_split(test, None, dataset)
    annotations = file.load()
    console.line(f"test: {len(annotations):,} queries; {annotations.report}")
    if file.format == "didemo":
        annotations = keep_consensus(annotations)
    metrics = evaluate_predictions(read_submission(predictions), annotations, protocol=protocol)
    metrics_table(console, {predictions.name: metrics}, f"protocol {protocol}; percent")
    console.document(
        {"predictions": predictions, "test": file.path, "protocol": protocol, **metrics}
    )
