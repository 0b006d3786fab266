import json
import os
import string

import numpy as np
import pytest
import torch
from helpers.assertions import refuses
from hypothesis import given
from hypothesis import strategies as st

from tmapdiff.data import Vocabulary, load_glove, tokenize
from tmapdiff.data import words as words_module
from tmapdiff.errors import ArgumentError, CheckpointError, ConfigError, FileError, SizeLimitError


@pytest.mark.parametrize(
    ("sentence", "words"),
    [
        ("A person opens the door.", "a person opens the door"),
        (
            "the person's putting.the cup down,then sits",
            "the person 's putting the cup down then sits",
        ),
        ("they don't, can't and WON'T", "they do n't ca n't and wo n't"),
        ("she'd've said they\u2019re o'clock's", "she 'd 've said they 're o'clock's"),
        (
            "'open' the \"half-eaten\" sandwich/taco #2 & (removes",
            "open the half eaten sandwich taco 2 removes",
        ),
        ("bulb!.", "bulb"),
        ("une fille s'assied caf\u00e9", "une fille s'assied caf\u00e9"),
        ("cafe\u0301", "caf\u00e9"),
        ("door_knob", "door knob"),
    ],
)
def test_tokenize(sentence, words):
    assert tokenize(sentence) == words.split()


@given(st.lists(st.text(string.ascii_lowercase, min_size=1), min_size=1), st.data())
def test_punctuation_never_eats_a_word(words, data):
    separators = st.sampled_from([" ", ".", ", ", " - ", "...", "!\n", "##", "/", '" "'])
    sentence = "".join(word + data.draw(separators) for word in words)
    assert tokenize(sentence) == words
    assert tokenize(sentence.upper()) == words


@pytest.mark.parametrize("sentence", ["", " ", "...", "'", "\n"])
def test_a_sentence_without_a_word(sentence):
    with pytest.raises(ArgumentError, match="tokenize: expected a sentence with a word, got "):
        tokenize(sentence)


def test_tokenize_needs_text():
    with pytest.raises(ArgumentError, match="expected a sentence as str, got NoneType"):
        tokenize(None)


def test_vocabulary():
    sentences = ["the dog sits.", "the cat sits.", "The cat runs"]
    vocabulary = Vocabulary.from_sentences(sentences)
    assert vocabulary.words == ("<pad>", "<unk>", "the", "cat", "sits", "dog", "runs")
    assert len(vocabulary) == 7
    assert "cat" in vocabulary
    assert repr(vocabulary) == "Vocabulary(7 words)"
    indices = vocabulary.encode("A cat, the CAT.")
    assert indices.dtype == torch.int64
    assert indices.tolist() == [1, 3, 2, 3]
    # No sentence can reach padding or smuggle in a special word.
    assert vocabulary.encode("<pad> <unk>").tolist() == [1, 1]
    rare = Vocabulary.from_sentences(sentences, min_count=2)
    assert rare.words[2:] == ("the", "cat", "sits")
    assert vocabulary == Vocabulary(vocabulary.words[2:])
    assert hash(vocabulary) == hash(Vocabulary(vocabulary.words[2:]))
    assert vocabulary != rare


def test_vocabulary_errors():
    with pytest.raises(ArgumentError, match="expected each word once, got 'a' twice"):
        Vocabulary(["a", "b", "a"])
    with pytest.raises(ArgumentError, match="got '<pad>' twice"):
        Vocabulary(["<pad>"])
    for bad in ("", 3):
        with pytest.raises(ArgumentError, match="expected words of text"):
            Vocabulary(["a", bad])
    with pytest.raises(ArgumentError, match="min_count to be an integer >= 1, got 0"):
        Vocabulary.from_sentences(["a"], min_count=0)
    with pytest.raises(ArgumentError, match="expected a list of sentences, got 'a person'"):
        Vocabulary.from_sentences("a person")
    with pytest.raises(ArgumentError, match="expected a sentence with a word"):
        Vocabulary.from_sentences(["a", "."])
    with pytest.raises(ArgumentError, match="expected a sentence with a word"):
        Vocabulary(["a"]).encode(".")


def test_vocabulary_round_trip(tmp_path):
    vocabulary = Vocabulary(["z", "a", "'s", "n't", "caf\u00e9", "\U0001f600"])
    path = tmp_path / "words.json"
    vocabulary.save(path)
    vocabulary.save(path)
    assert Vocabulary.load(path) == vocabulary
    assert os.listdir(tmp_path) == ["words.json"]


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("", "expected a JSON file with the format 'tmapdiff vocabulary 1', got something else"),
        ("[]", "got something else"),
        ('{"format": "other", "words": []}', "got something else"),
        ("[" * 100_000, "got something else"),
        ('{"format": "tmapdiff vocabulary 1"}', "expected a list of words, got NoneType"),
        ('{"format": "tmapdiff vocabulary 1", "words": ["a", "a"]}', "expected each word once"),
        ('{"format": "tmapdiff vocabulary 1", "words": [3]}', "expected words of text"),
        ('{"format": "tmapdiff vocabulary 1", "words": [[]]}', "unhashable"),
    ],
)
def test_vocabulary_file_that_is_something_else(tmp_path, content, text):
    path = tmp_path / "words.json"
    path.write_text(content)
    with pytest.raises(CheckpointError, match=rf"words\.json: .*{text}") as caught:
        Vocabulary.load(path)
    assert "\n" not in str(caught.value)


def test_vocabulary_file_that_cannot_be_used(tmp_path):
    with pytest.raises(FileError, match=r"cannot read .*none\.json: No such file"):
        Vocabulary.load(tmp_path / "none.json")
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CheckpointError, match="got something else"):
        Vocabulary.load(tmp_path / "bytes.json")
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match="cannot write"):
        Vocabulary(["a"]).save(tmp_path / "file" / "words.json")


WORDS = [
    "the",
    ",",
    "a.b",
    "n't",
    "\u00e9t\u00e9",
    "x\u00a0y",
    "x\u0085y",
    ". . .",
    "at name@x.com",
]


def write_glove(path, words=WORDS, dim=3, header=""):
    vectors = np.random.default_rng(0).standard_normal((len(words), dim)).astype(np.float32)
    lines = (
        f"{word} {' '.join(map(repr, row.tolist()))}\n"
        for word, row in zip(words, vectors, strict=True)
    )
    path.write_bytes((header + "".join(lines)).encode())
    return vectors


@pytest.mark.parametrize("header", ["", "9 3\n"])
@pytest.mark.parametrize("at_once", [1, 2, 9, 8192])
def test_glove_with_and_without_cache(tmp_path, monkeypatch, header, at_once):
    monkeypatch.setattr(words_module, "_LINES_AT_ONCE", at_once)
    path = tmp_path / "glove.txt"
    vectors = write_glove(path, header=header)
    first = load_glove(path)
    assert sorted(os.listdir(tmp_path)) == ["glove.txt", "glove.txt.cache"]
    monkeypatch.setattr(words_module, "_parse_glove", None)  # the second time comes from the cache
    second = load_glove(path)
    for glove in (first, second):
        assert list(glove.words) == WORDS
        assert glove.vectors.dtype == torch.float32
        np.testing.assert_array_equal(glove.vectors, vectors)
    assert repr(second) == "GloveVectors(9 words, D 3)"
    # Memory of the caller's, not the file's.
    second.vectors.zero_()
    np.testing.assert_array_equal(load_glove(path).vectors, vectors)


def test_glove_of_some_words(tmp_path):
    path = tmp_path / "glove.txt"
    vectors = write_glove(path)
    for _ in range(2):
        glove = load_glove(path, words=["n't", "the", "none"])
        assert glove.words == ("the", "n't")
        np.testing.assert_array_equal(glove.vectors, vectors[[0, 3]])


def test_glove_one_dimension(tmp_path):
    path = tmp_path / "glove.txt"
    path.write_text("the 0.5\na 1.5\n")
    assert load_glove(path).vectors.tolist() == [[0.5], [1.5]]


def test_a_changed_text_is_read_anew(tmp_path):
    path = tmp_path / "glove.txt"
    path.write_text("a 1.0\n")
    os.utime(path, ns=(10**18, 10**18))
    load_glove(path)
    path.write_text("a 2.0\n")  # of the same size
    os.utime(path, ns=(10**18, 10**18 + 1000))
    assert load_glove(path).vectors.tolist() == [[2.0]]
    path.write_text("a 2.00\n")
    os.utime(path, ns=(10**18, 10**18 + 1000))
    assert load_glove(path).vectors.tolist() == [[2.0]]
    stamp = json.loads((tmp_path / "glove.txt.cache" / "stamp.json").read_text())
    assert stamp["size"] == 7


@pytest.mark.parametrize("name", ["vectors.npy", "words.txt", "stamp.json"])
@pytest.mark.parametrize("damage", ["gone", "empty", "short", "noise"])
def test_a_damaged_cache_is_rebuilt(tmp_path, name, damage):
    path = tmp_path / "glove.txt"
    vectors = write_glove(path)
    load_glove(path)
    file = tmp_path / "glove.txt.cache" / name
    content = file.read_bytes()
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes({"empty": b"", "short": content[:-5], "noise": b"\xff" * 40}[damage])
    for _ in range(2):
        glove = load_glove(path)
        assert list(glove.words) == WORDS
        np.testing.assert_array_equal(glove.vectors, vectors)
    assert file.read_bytes()[:-40] == content[:-40]


def test_a_cache_that_cannot_be_written_is_one_warning(tmp_path):
    path = tmp_path / "glove.txt"
    vectors = write_glove(path)
    (tmp_path / "glove.txt.cache").write_text("a file in the way")
    with pytest.warns(UserWarning, match="GloVe vectors are not cached: cannot write") as caught:
        glove = load_glove(path)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    np.testing.assert_array_equal(glove.vectors, vectors)
    assert sorted(os.listdir(tmp_path)) == ["glove.txt", "glove.txt.cache"]


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (b"word 1.0 2.0", "a word in UTF-8 and 3 finite numbers, got 'word 1.0 2.0'"),
        (b"1.0 2.0 3.0", "3 finite numbers, got '1.0 2.0 3.0'"),
        (b" 1.0 2.0 3.0", "3 finite numbers"),
        (b"word 1.0 x 3.0", "3 finite numbers, got 'word 1.0 x 3.0'"),
        (b"word 1.0 2.0 3.0x", "3 finite numbers"),
        (b"word 1.0  3.0", "3 finite numbers"),
        (b"word nan 2.0 3.0", "3 finite numbers"),
        (b"word 1e99 2.0 3.0", "3 finite numbers"),
        (b"w\xff 1.0 2.0 3.0", "a word in UTF-8"),
        (b"word 1.0 2.0 3.\xff", "3 finite numbers"),
        (b"", "3 finite numbers, got ''"),
        (b"x" * 100_000, r"x\.\.\.'"),
    ],
)
@pytest.mark.parametrize("at_once", [2, 8192])
def test_a_malformed_line_is_named(tmp_path, monkeypatch, line, text, at_once):
    monkeypatch.setattr(words_module, "_LINES_AT_ONCE", at_once)
    path = tmp_path / "glove.txt"
    good = b"the 1.0 2.0 3.0\n"
    path.write_bytes(good * 3 + line + b"\n" + good)
    with pytest.raises(FileError, match=rf"glove\.txt line 4: expected .*{text}") as caught:
        load_glove(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300 + len(str(path))
    assert os.listdir(tmp_path) == ["glove.txt"]


def test_files_that_are_no_glove(tmp_path):
    with pytest.raises(FileError, match=r"cannot read .*none: No such file"):
        load_glove(tmp_path / "none")
    (tmp_path / "empty").write_text("")
    with pytest.raises(FileError, match="expected a word and its vector a line, got an empty file"):
        load_glove(tmp_path / "empty")
    (tmp_path / "words").write_text("the\na\n")
    with pytest.raises(
        FileError, match="line 1: expected a word and its vector a line, with spaces"
    ):
        load_glove(tmp_path / "words")
    with pytest.raises(FileError, match="cannot read"):
        load_glove(tmp_path)


def test_rows_for_a_vocabulary(tmp_path):
    path = tmp_path / "glove.txt"
    path.write_text("the 1 2\ncat 3 4\nother 9 9\ncat 7 7\n<pad> 5 5\n")
    vocabulary = Vocabulary(["cat", "nowhere", "the"])
    for _ in range(2):
        rows, found = load_glove(path).rows_for(vocabulary)
        assert found == 2
        # The first of two vectors counts; unknown words get the mean of those found.
        assert rows.tolist() == [[0, 0], [2, 3], [3, 4], [2, 3], [1, 2]]
    rows, found = load_glove(path).rows_for(Vocabulary(["nowhere"]))
    assert (rows.tolist(), found) == ([[0, 0]] * 3, 0)
    # MS-2D-TAN's way.
    rows, _ = load_glove(path).rows_for(vocabulary, missing="zero")
    assert rows.tolist() == [[0, 0], [0, 0], [3, 4], [0, 0], [1, 2]]
    with pytest.raises(ConfigError, match=r"missing to be one of mean, zero, got 'one'\."):
        load_glove(path).rows_for(vocabulary, missing="one")


def test_vectors_of_a_damaged_cache_are_not_used(tmp_path):
    path = tmp_path / "glove.txt"
    path.write_text("door 1 2\nlamp 3 4\n")
    load_glove(path)
    cache = tmp_path / "glove.txt.cache" / "vectors.npy"
    vectors = np.load(cache)
    vectors[1] = np.nan
    np.save(cache, vectors)
    glove = load_glove(path)
    assert glove.rows_for(Vocabulary(["door"]))[1] == 1
    with refuses(ArgumentError, "expected vectors of finite numbers, got NaN or infinity."):
        glove.rows_for(Vocabulary(["lamp"]))
    # A header that does not end: Python's tokenizer has an error of its own for that.
    cache.write_bytes(cache.read_bytes().replace(b"(2, 2)", b"((2,2)"))
    assert load_glove(path).vectors.tolist() == [[1, 2], [3, 4]]


def test_a_line_that_is_no_line(tmp_path, monkeypatch):
    monkeypatch.setenv("TMAPDIFF_MAX_ITEM_BYTES", "2400")
    path = tmp_path / "glove.txt"
    path.write_text("door 1 2\n" + "x" * 5000)
    with refuses(SizeLimitError, "glove.txt: expected a line of at most 2,400 bytes"):
        load_glove(path)
