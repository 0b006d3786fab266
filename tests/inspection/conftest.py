import json

import pytest


@pytest.fixture
def queries(tmp_path):
    """Write a file of queries of videos, each of its whole video, by their durations."""

    def write(name="queries.jsonl", query="a dog", **durations):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        lines = [
            {
                "qid": qid,
                "query": query,
                "vid": vid,
                "duration": end,
                "relevant_windows": [[0, end]],
            }
            for qid, (vid, end) in enumerate(durations.items())
        ]
        (tmp_path / name).write_text("\n".join(map(json.dumps, lines)))
        return tmp_path / name

    return write
