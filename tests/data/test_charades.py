import pytest
from helpers.assertions import refuses
from helpers.datasets import charades_row as row

from tmapdiff.data import CharadesVideo, load_charades_actions, load_charades_sta
from tmapdiff.errors import AnnotationError, ConfigError, FileError


def test_a_small_folder(charades):
    root = charades(
        [
            "AAAAA 1.0 2.5##a person sits.",
            "",
            "AAAAA 28.0 31.0## a person stands up. ",
            "BBBBB 5.0 5.0##nothing.",
            "BBBBB 20.5 25.0##too late.",
            "BBBBB 0 20.5##all ## of it.",
        ]
    )
    items = load_charades_sta(root, "train")
    assert [(item.qid, item.video_id, item.query) for item in items] == [
        (0, "AAAAA", "a person sits."),
        (1, "AAAAA", "a person stands up."),
        (2, "BBBBB", "all ## of it."),
    ]
    assert [item.moments for item in items] == [((1, 2.5),), ((28, 30),), ((0, 20.5),)]
    assert [item.duration for item in items] == [30, 30, 20.5]
    report = items.report
    assert (report.source, report.lines, report.kept) == ("charades_sta_train.txt", 5, 3)
    assert report.cut_ends == 1
    assert report.dropped == {"start not before end": (4,), "starts after the video's end": (5,)}


def test_windows_line_ends_and_byte_order_mark(charades):
    root = charades([], split="test")
    line = "\ufeffAAAAA 1.0 2.5##a person sits.\r\n"
    (root / "charades_sta_test.txt").write_bytes(line.encode())
    (item,) = load_charades_sta(root, "test")
    assert (item.video_id, item.query) == ("AAAAA", "a person sits.")


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("AAAAA 1.0 2.0 a person.", "expected 'VIDEO START END##sentence', got 'AAAAA"),
        ("AAAAA 1.0##a person.", "expected 'VIDEO START END##sentence', got 'AAAAA 1.0"),
        ("AAAAA 1 2 3##a person.", "expected a video of Charades_v1_train.csv, got 'AAAAA 1'"),
        ("AAAAA one 2##a person.", "expected a time in seconds, got 'one'"),
        ("AAAAA nan 2##a person.", "expected a time in seconds, got 'nan'"),
        ("AAAAA 1 inf##a person.", "expected a time in seconds, got 'inf'"),
        ("AAAAA 1_0 20##a person.", "expected a time in seconds, got '1_0'"),
        ("AAAAA 1 \uff12##a person.", "expected a time in seconds, got '\uff12'"),
        ("AAAAA 1 2## ", "expected a sentence as query, got ''"),
        ("CCCCC 1 2##a person.", "expected a video of Charades_v1_train.csv, got 'CCCCC'"),
        ("../AA 1 2##a person.", "expected a video of Charades_v1_train.csv, got '../AA'"),
    ],
)
def test_a_malformed_line_is_named(charades, line, text):
    root = charades(["AAAAA 1.0 2.5##a person sits.", line])
    with refuses(AnnotationError, "charades_sta_train.txt line 2: ", text):
        load_charades_sta(root, "train")


def test_long_lines_are_shown_in_part(charades):
    root = charades(["x" * 100_000])
    with pytest.raises(AnnotationError, match=r"x\.\.\.'") as caught:
        load_charades_sta(root, "train")
    assert len(str(caught.value)) < 400 + len(str(root))


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        ([row("A", actions="c157 1 2")], "'c000 START END', classes c000 to c156, got 'c157 1 2'"),
        ([row("A", actions="x001 1 2")], "expected actions as 'c000 START END', classes"),
        ([row("A", actions="c001 1")], "got 'c001 1'"),
        ([row("A", actions="c001 1 1_0")], "line 2: expected a time in seconds, got '1_0'"),
        ([row("A"), row("B", actions="c001 1 2;c002 1 x")], "line 3: expected a time in seconds"),
        (["AAAAA,S"], "line 2: expected 11 fields, as in the header, got fewer"),
        ([row("AAAAA") + ",1"], "line 2: expected 11 fields, as in the header, got more"),
        ([row("AAAAA", "0")], "line 2: expected a length > 0 seconds, got '0'"),
        ([row("AAAAA", "3_0")], "line 2: expected a time in seconds, got '3_0'"),
        ([row("AAAAA", " 30")], "line 2: expected a time in seconds, got ' 30'"),
        ([row("AAAAA")] * 2, "line 3: expected each video once, got 'AAAAA' again"),
        ([row("a/b")], "line 2: expected a video id without '/'"),
        ([row("A" * 200_000)], "line 2: expected comma-separated values, got field"),
    ],
)
def test_a_malformed_csv_is_named(charades, rows, text):
    with refuses(AnnotationError, "Charades_v1_train.csv line ", text):
        load_charades_actions(charades([], rows), "train")


def test_csv_without_a_column(charades):
    root = charades([])
    (root / "Charades_v1_train.csv").write_text("id,length\nAAAAA,3\n")
    expected = "line 1: expected a header with the columns id, actions, length, got none named "
    with refuses(AnnotationError, f"{expected}actions"):
        load_charades_actions(root, "train")
    (root / "Charades_v1_train.csv").write_text("")
    with refuses(AnnotationError, f"{expected}id, actions, length"):
        load_charades_actions(root, "train")


@pytest.mark.parametrize("name", ["charades_sta_train.txt", "Charades_v1_train.csv"])
def test_bytes_that_are_no_text(charades, name):
    root = charades(["AAAAA 1.0 2.5##a person sits."])
    path = root / name
    path.write_bytes(path.read_bytes() + b"abc\xff\n")
    number = path.read_bytes().count(b"\n")
    with refuses(AnnotationError, f"{name} line {number}: expected UTF-8 text, got the byte 0xff"):
        load_charades_sta(root, "train")


@pytest.mark.parametrize("name", ["charades_sta_train.txt", "Charades_v1_train.csv"])
def test_a_missing_file_is_named(charades, name):
    root = charades([])
    (root / name).unlink()
    with refuses(FileError, f"cannot read {root / name}: No such file"):
        load_charades_sta(root, "train")
    (root / name).mkdir()
    with refuses(FileError, f"cannot read {root / name}: "):
        load_charades_sta(root, "train")


def test_split_is_checked(tmp_path):
    with refuses(ConfigError, "expected split to be one of train, test, got 'val'"):
        load_charades_sta(tmp_path, "val")


def test_actions(charades):
    actions = "c000 -0.04 2.5; c156 3.0 99.0;c003 5.0 4.0;c004 31.0 32.0"
    root = charades([], [row("AAAAA", "30.0", actions), row("BBBBB", "5.5", "")])
    assert load_charades_actions(root, "train") == {
        "AAAAA": CharadesVideo(30.0, ((0, 0.0, 2.5), (156, 3.0, 99.0))),
        "BBBBB": CharadesVideo(5.5, ()),
    }


def test_the_official_files(charades_root):
    train = load_charades_sta(charades_root, "train")
    test = load_charades_sta(charades_root, "test")
    assert (len(train), len(test)) == (12_404, 3_720)
    assert (train.report.lines, test.report.lines) == (12_408, 3_720)
    assert train.report.dropped == {"start not before end": (8252, 8440, 9623, 9624)}
    # 1,805 of train end past their video; three of those are dropped.
    assert (train.report.cut_ends, test.report.cut_ends) == (1802, 562)
    assert (len(train.video_ids), len(test.video_ids)) == (5_336, 1_334)
    assert not set(train.video_ids) & set(test.video_ids)
    assert [item.qid for item in train] == list(range(12_404))
    # Every moment was made of an action of its video.
    videos = load_charades_actions(charades_root, "train")
    found = 0
    for item in train:
        ((start, end),) = item.moments
        cut = [(s, min(e, item.duration)) for _, s, e in videos[item.video_id].actions]
        found += any(abs(s - start) < 0.06 and abs(e - end) < 0.06 for s, e in cut)
    assert found / len(train) > 0.999


def test_the_official_actions(charades_root):
    train = load_charades_actions(charades_root, "train")
    test = load_charades_actions(charades_root, "test")
    assert (len(train), len(test)) == (7_985, 1_863)
    num_actions = [sum(len(video.actions) for video in part.values()) for part in (train, test)]
    assert num_actions == [49_809 - 7, 16_691]
