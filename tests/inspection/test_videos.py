from helpers.assertions import kinds
from helpers.datasets import didemo_record, query_line, write_lines
from helpers.videos import write_video

from tmapdiff.inspection import inspect


def test_facts_of_a_video(tmp_path):
    path = write_video(tmp_path / "a.mp4", range(6))
    found = inspect(path)
    assert (found.kind, found.findings) == ("videos", ())
    facts = found.facts["a.mp4"]
    assert facts["bytes"] == path.stat().st_size
    assert {name: facts[name] for name in ("videos", "duration", "size", "rotation", "codec")} == {
        "videos": 1, "duration": "5 s", "size": "64 x 32", "rotation": "0", "codec": "h264",
    }  # fmt: skip


def test_damaged_videos_and_other_files_of_a_folder_are_found(tmp_path):
    write_video(tmp_path / "good.mp4", range(6))
    whole = write_video(tmp_path / "cut.mkv", range(60)).read_bytes()
    (tmp_path / "cut.mkv").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "notes.txt").write_text("not counted")
    found = inspect(tmp_path)
    assert found.facts[tmp_path.name]["videos"] == 3
    assert [finding.kind for finding in found.findings] == ["damaged video", "not a video"]
    assert found.findings[0].text.startswith("cut.mkv: ")
    assert found.findings[1].items == ("text",)


def test_two_files_of_one_id_are_found(tmp_path):
    write_video(tmp_path / "a.mp4", range(3))
    write_video(tmp_path / "a.mkv", range(5))
    found = inspect(tmp_path)
    assert kinds(found) == {"duplicates": ("a",)}
    assert found.facts[tmp_path.name]["duration"] == "2 to 4 s, median 3 s"


def test_against_annotations(tmp_path):
    (tmp_path / "videos").mkdir()
    for name in ("a", "unasked"):
        write_video(tmp_path / "videos" / f"{name}.mp4", range(11))
    asked = (("x", "a", [[0, 11]]), ("y", "a", [[9, 12], [3, 14]]), ("z", "lost", [[0, 3]]))
    lines = (query_line(*one, duration=60.0) for one in asked)
    path = write_lines(tmp_path / "queries.jsonl", lines)
    wanted = {
        "missing video": ("lost",),
        "video without annotations": ("unasked",),
        "moments past the end": ("y (14 s of 10 s)",),
        "durations that differ": ("a (60 s of 10 s)",),
    }
    assert kinds(inspect(tmp_path / "videos", path)) == wanted
    assert kinds(inspect(path, tmp_path / "videos")) == wanted
    # DiDeMo describes segments of 5 s in the first 30 s, of which the last may be shorter.
    annotations = write_lines(
        tmp_path / "val_data.json", [[didemo_record(video="a", times=[[2, 2]])]]
    )
    found = kinds(inspect(annotations, tmp_path / "videos"))
    assert found.keys() == {"video without annotations"}
