import json

import pytest


@pytest.fixture
def queries(tmp_path):
    """Write a file of queries, each about a whole video, given the videos' durations."""

    def write(name="queries.jsonl", **durations):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        lines = [
            {"qid": video, "query": "a dog", "vid": video, "duration": duration,
             "relevant_windows": [[0, duration]]}
            for video, duration in durations.items()
        ]  # fmt: skip
        path.write_text("\n".join(map(json.dumps, lines)))
        return path

    return write
