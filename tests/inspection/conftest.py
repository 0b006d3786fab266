import pytest
from helpers.datasets import query_line, write_lines


@pytest.fixture
def queries(tmp_path):
    """Write a file of queries, each about a whole video, given the videos' durations."""

    def write(name="queries.jsonl", **durations):
        lines = (
            query_line(video, video, [[0, duration]], duration=duration)
            for video, duration in durations.items()
        )
        return write_lines(tmp_path / name, lines)

    return write
