"""Mean and standard deviation over runs that differ in their seed, as a Markdown table.

    python benchmarks/summarize.py runs/charades-tiny-0 runs/charades-tiny-1 runs/charades-tiny-2

Reads the metrics.json that examples/train_charades.py writes into each folder; files are taken too.
"""

import argparse
import json
import statistics
from pathlib import Path


def read(path: Path) -> dict:
    return json.loads((path / "metrics.json" if path.is_dir() else path).read_text())


def table(runs: list[dict]) -> str:
    names = list(next(iter(runs[0]["rows"].values())))
    lines = [f"| | {' | '.join(names)} |", f"| --- |{' --- |' * len(names)}"]
    for row in runs[0]["rows"]:
        cells = []
        for name in names:
            values = [run["rows"][row][name] for run in runs]
            spread = f" ± {statistics.stdev(values):.1f}" if len(set(values)) > 1 else ""
            cells.append(f"{statistics.mean(values):.1f}{spread}")
        lines.append(f"| {row} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+", help="output folders, or metrics.json files")
    runs = [read(path) for path in parser.parse_args().runs]
    features = {run["features"] for run in runs}
    seeds = ", ".join(str(run["seed"]) for run in runs)
    print(f"Features: {'; '.join(sorted(features))}. Seeds {seeds}; mean ± standard deviation.\n")
    print(table(runs))


if __name__ == "__main__":
    main()
