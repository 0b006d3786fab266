import json
import os
import string
import unicodedata
from functools import cache

import numpy as np
import pytest
import torch
from helpers.assertions import refuses
from hypothesis import example, given
from hypothesis import strategies as st

from tmapdiff.data import Vocabulary, load_glove, tokenize
from tmapdiff.errors import ArgumentError, CheckpointError, ConfigError, FileError, SizeLimitError


@pytest.mark.parametrize(
    ("sentence", "words"),
    [
        ("A person opens the door.", "a person opens the door"),
        ("the person's putting.the cup down,then", "the person 's putting the cup down then"),
        ("they don't, can't and WON'T", "they do n't ca n't and wo n't"),
        ("she'd've said they\u2019re o'clock's", "she 'd 've said they 're o'clock's"),
        ("'open' the \"half-eaten\" taco/roll #2 & (is", "open the half eaten taco roll 2 is"),
        ("bulb!.", "bulb"),
        ("une fille s'assied caf\u00e9", "une fille s'assied caf\u00e9"),
        ("cafe\u0301", "caf\u00e9"),
        ("door_knob", "door knob"),
    ],
)
def test_tokenize(sentence, words):
    assert tokenize(sentence) == words.split()


# Words that marks alone tell apart, and words that marks or invisible characters would cut in two.
MARKED = [
    "\u0915\u0940 \u0915\u093e \u0915\u093f \u0915\u0947",  # Hindi: four words for "of"
    "\u0995\u09bf \u0995\u09c0 \u09ac\u09be\u0982\u09b2\u09be",  # Bengali
    "\u0bb5\u0ba3\u0b95\u0bcd\u0b95\u0bae\u0bcd \u0ba8\u0bbe\u0baf\u0bcd",  # Tamil
    "\u0643\u064e\u062a\u064e\u0628\u064e \u0643\u064f\u062a\u0650\u0628\u064e",  # Arabic
    "\u05e9\u05b8\u05c1\u05dc\u05d5\u05b9\u05dd \u05e1\u05b5\u05e4\u05b6\u05e8",  # Hebrew
    "\u1ecd\u0300r\u1ecd\u0300 \u1ecd\u0301r\u1ecd\u0301",  # Yoruba
    "i\u0307stanbul",  # Turkish
    "\u0646\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",  # Persian: "I do not want"
    "\u0d05\u0d35\u0d28\u0d4d\u200d",  # Malayalam: "he", with a joiner at its end
    "col\u00b7lecci\u00f3",  # Catalan
]


@pytest.mark.parametrize("sentence", MARKED)
def test_marks_are_part_of_their_words(sentence):
    spelled = sentence.split()
    assert tokenize(sentence) == [unicodedata.normalize("NFC", word) for word in spelled]
    assert len(set(tokenize(sentence))) == len(set(spelled))
    # Decomposed, and between punctuation, too.
    for text in (unicodedata.normalize("NFD", sentence), f"({sentence.replace(' ', ', ')}!)"):
        assert tokenize(text) == tokenize(sentence)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("\u0130stanbul", "i\u0307stanbul"),
        ("STRASSE", "stra\u00dfe"),
        ("\u039f\u0394\u039f\u03a3", "\u03bf\u03b4\u03bf\u03c2"),  # a sigma at the end
        ("mo\u00adment", "moment"),  # a soft hyphen
        ("\u2067\u05e1\u05e4\u05e8\u2069", "\u05e1\u05e4\u05e8"),  # marks of direction
        ("2\ufe0f\u20e3", "2"),  # a key's cap
        ("door\u200d", "door"),
    ],
)
def test_words_that_differ_in_case_or_in_nothing_seen(one, other):
    assert tokenize(one) == tokenize(other)
    assert len(tokenize(one)) == 1


@pytest.mark.parametrize(
    ("sentence", "words"),
    [
        ("\u732b\u304c\u8d70\u308b", None),  # Japanese: a cat runs
        ("\u4eba\u3005\u304c\u30ab\u30e1\u30e9\u3092", None),  # with an iteration mark and katakana
        ("\u4e00\u4e2a\u4eba\u6253\u5f00\u95e8", None),  # Chinese: a person opens the door
        ("\U00020000\u3007", None),  # beyond the first plane; a numeral
        (
            "\u0e17\u0e35\u0e48\u0e19\u0e35\u0e48\u0e19\u0e49\u0e33",  # Thai: here, water
            ["\u0e17\u0e35\u0e48", "\u0e19\u0e35\u0e48", "\u0e19\u0e49\u0e33"],
        ),
        ("\u0e94\u0eb5", ["\u0e94\u0eb5"]),  # Lao
        ("iPhone\u3067\u64ae\u308b", ["iphone", "\u3067", "\u64ae", "\u308b"]),
        ("Tom's\u732b", ["tom", "'s", "\u732b"]),
        ("\ud55c\uad6d\uc5b4 \ubb38", ["\ud55c\uad6d\uc5b4", "\ubb38"]),  # Korean has spaces
    ],
)
def test_scripts_without_spaces(sentence, words):
    assert tokenize(sentence) == (list(sentence) if words is None else words)


# Letters that are shown as nothing at all.
FILLERS = "\u115f\u1160\u3164\uffa0"


@given(st.text(st.characters(exclude_characters=FILLERS, exclude_categories=["Cn"])))
def test_no_letter_is_lost(sentence):
    folded = unicodedata.normalize("NFD", sentence.replace("\u2019", "'")).casefold()
    letters = [
        one for one in unicodedata.normalize("NFC", folded) if unicodedata.category(one)[0] in "LN"
    ]
    if not letters:
        with pytest.raises(ArgumentError):
            tokenize(sentence)
        return
    kept = [one for one in "".join(tokenize(sentence)) if unicodedata.category(one)[0] in "LN"]
    assert kept == letters


def split_by_hand(sentence):
    """The words of an ASCII sentence, letter by letter."""
    return [word for part in sentence.lower().split() for word in split_part_by_hand(part)]


@cache
def split_part_by_hand(rest):
    letters = string.ascii_lowercase + string.digits
    words = []
    endings = ("n't", "'s", "'re", "'ve", "'ll", "'d", "'m")

    def ending_of(text):
        for one in endings if text[:1] in ("n", "'") else ():
            if text.startswith(one) and (text[len(one) :] + " ")[0] not in letters + "_":
                return one
        return ""

    while rest:
        if ending := ending_of(rest):
            words.append(ending)
            rest = rest[len(ending) :]
            continue
        if rest[0] not in letters:
            rest = rest[1:]
            continue
        size = 1
        while size < len(rest) and rest[size] in letters and not ending_of(rest[size:]):
            size += 1
        if not ending_of(rest[size:]):
            while rest[size : size + 1] == "'" and rest[size + 1 : size + 2] in [*letters]:
                size += 1
                while size < len(rest) and rest[size] in letters:
                    size += 1
        words.append(rest[:size])
        rest = rest[size:]
    return words


@given(st.text(st.sampled_from("ant's_ -o9'\n")))
@example("rock'n'roll's")
@example("don't_")
@example("she'd've")
def test_ascii_is_split_as_ever(sentence):
    words = split_by_hand(sentence)
    for rule in ("unicode", "letters"):
        if words:
            assert tokenize(sentence, rule) == words
        else:
            with pytest.raises(ArgumentError):
                tokenize(sentence, rule)


def test_english_data_has_the_words_it_had(data_root):
    """Charades-STA's, DiDeMo's, ActivityNet's and TACoS' published sentences."""
    sentences = [
        line.split("##", 1)[1]
        for path in data_root.glob("charades/charades_sta_*.txt")
        for line in path.read_text().splitlines()
    ]
    for path in data_root.glob("didemo/*.json"):
        sentences += [one["description"] for one in json.loads(path.read_text())]
    for folder in ("activitynet", "tacos"):
        for one in json.loads((data_root / folder / "val.json").read_text()).values():
            sentences += one["sentences"]
    plain = {one for one in sentences if one.isascii() and any(map(str.isalnum, one))}
    assert len(plain) > 20_000
    assert [one for one in plain if tokenize(one) != split_by_hand(one)] == []


@given(st.lists(st.text(string.ascii_lowercase, min_size=1), min_size=1), st.data())
def test_punctuation_never_eats_a_word(words, data):
    separators = st.sampled_from([" ", ".", ", ", " - ", "...", "!\n", "##", "/", '" "'])
    sentence = "".join(word + data.draw(separators) for word in words)
    assert tokenize(sentence) == words
    assert tokenize(sentence.upper()) == words


@pytest.mark.parametrize("sentence", ["", " ", "...", "'", "\n", None])
def test_a_sentence_without_a_word(sentence):
    text = "with a word, got " if sentence is not None else "as str, got NoneType"
    with refuses(ArgumentError, f"tokenize: expected a sentence {text}"):
        tokenize(sentence)


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
    assert vocabulary.unknown_words("A zebra, the ZEBRA: a cat.") == ["a", "zebra"]
    # No sentence can reach padding or smuggle in a special word.
    assert vocabulary.encode("<pad> <unk>").tolist() == [1, 1]
    rare = Vocabulary.from_sentences(sentences, min_count=2)
    assert rare.words[2:] == ("the", "cat", "sits")
    assert vocabulary == Vocabulary(vocabulary.words[2:])
    assert hash(vocabulary) == hash(Vocabulary(vocabulary.words[2:]))
    assert vocabulary != rare


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: Vocabulary(["a", "b", "a"]), "expected each word once, got 'a' twice"),
        (lambda: Vocabulary(["<pad>"]), "got '<pad>' twice"),
        (lambda: Vocabulary(["a", ""]), "expected nonempty texts as words"),
        (lambda: Vocabulary(["a", 3]), "expected nonempty texts as words"),
        (lambda: Vocabulary.from_sentences(["a"], min_count=0), "min_count to be an integer >= 1"),
        (lambda: Vocabulary.from_sentences("a person"), "a list of sentences, got 'a person'"),
        (lambda: Vocabulary.from_sentences(["a", "."]), "expected a sentence with a word"),
        (lambda: Vocabulary(["a"]).encode("."), "expected a sentence with a word"),
    ],
)
def test_vocabulary_errors(call, text):
    with refuses(ArgumentError, text):
        call()


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
        ("\udcff\udcfe\0", "got something else"),
        ("[]", "got something else"),
        ('{"format": "other", "words": []}', "got something else"),
        ("[" * 100_000, "got something else"),
        ('{"format": "tmapdiff vocabulary 1"}', "expected a list of words, got NoneType"),
        ('{"format": "tmapdiff vocabulary 1", "words": ["a", "a"]}', "expected each word once"),
        ('{"format": "tmapdiff vocabulary 1", "words": [3]}', "expected nonempty texts as words"),
        ('{"format": "tmapdiff vocabulary 1", "words": [[]]}', "unhashable"),
    ],
)
def test_vocabulary_file_that_is_something_else(tmp_path, content, text):
    path = tmp_path / "words.json"
    path.write_text(content, errors="surrogateescape")
    with refuses(CheckpointError, "words.json: ", text):
        Vocabulary.load(path)


def test_vocabularies_of_old_files_split_sentences_as_when_they_were_made(tmp_path):
    path = tmp_path / "words.json"
    # As they were written: "stanbul" and one sign for each of three words.
    old = {"format": "tmapdiff vocabulary 1", "words": ["\u0915", "i", "stanbul", "\u732b\u304c"]}
    path.write_text(json.dumps(old))
    vocabulary = Vocabulary.load(path)
    assert vocabulary.rule == "letters"
    sentence = "\u0915\u0940 \u0130stanbul \u732b\u304c"
    assert vocabulary.encode(sentence).tolist() == [2, 3, 4, 5]
    assert tokenize(sentence, "letters") == old["words"]
    assert vocabulary != Vocabulary(old["words"])
    vocabulary.save(path)
    assert Vocabulary.load(path) == vocabulary
    new = Vocabulary.from_sentences([sentence])
    assert new.rule == "unicode"
    new.save(path)
    assert Vocabulary.load(path) == new
    assert Vocabulary.load(path).encode(sentence).min() > 1
    path.write_text(json.dumps({**old, "rule": "tomorrow's"}))
    with refuses(CheckpointError, "rule to be one of unicode, letters, got"):
        Vocabulary.load(path)
    with refuses(ConfigError, "Vocabulary: expected rule to be one of unicode, letters, got 'x'."):
        Vocabulary(["a"], rule="x")
    with refuses(ConfigError, "tokenize: expected rule to be one of unicode, letters, got 'x'."):
        tokenize("a", "x")


def test_vocabulary_file_that_cannot_be_used(tmp_path):
    with refuses(FileError, "cannot read ", "none.json: No such file"):
        Vocabulary.load(tmp_path / "none.json")
    (tmp_path / "file").write_text("")
    with refuses(FileError, "cannot write"):
        Vocabulary(["a"]).save(tmp_path / "file" / "words.json")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "glove.txt"


@pytest.mark.parametrize("header", ["", "9 3\n"])
@pytest.mark.parametrize("width", [3, 1])
def test_glove_of_all_words_and_of_some(path, header, width):
    words = ["the", ",", "a.b", "n't", "\u00e9t", "x\u00a0y", "x\u0085y", ". . .", "at name@x.com"]
    vectors = np.random.default_rng(0).standard_normal((9, width)).astype(np.float32)
    numbers = (" ".join(map(repr, row.tolist())) for row in vectors)
    lines = (f"{word} {row}\n" for word, row in zip(words, numbers, strict=True))
    path.write_bytes((header + "".join(lines)).encode())
    glove = load_glove(path)
    assert list(glove.words) == words
    assert glove.vectors.dtype == torch.float32
    np.testing.assert_array_equal(glove.vectors, vectors)
    assert repr(glove) == f"GloveVectors(9 words, D {width})"
    some = load_glove(path, words=["n't", "the", "none"])
    assert some.words == ("the", "n't")
    np.testing.assert_array_equal(some.vectors, vectors[[0, 3]])
    assert load_glove(path, words=["none"]).vectors.shape == (0, width)


def test_lines_of_other_words_are_not_parsed(path):
    path.write_text("the 1 2 3\ncut 1 2\n")
    with refuses(FileError, "a word in UTF-8 and 3 finite numbers, got 'cut 1 2'."):
        load_glove(path, words=["cut"])
    assert load_glove(path, words=["the"]).words == ("the",)


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
def test_a_malformed_line_is_named(path, line, text):
    good = b"the 1.0 2.0 3.0\n"
    path.write_bytes(good * 3 + line + b"\n" + good)
    with pytest.raises(FileError, match=rf"glove\.txt line 4: expected .*{text}") as caught:
        load_glove(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300 + len(str(path))


def test_files_that_are_no_glove(tmp_path):
    with refuses(FileError, "cannot read ", "none: No such file"):
        load_glove(tmp_path / "none")
    (tmp_path / "empty").write_text("")
    with refuses(FileError, "expected a word and its vector per line, got an empty file"):
        load_glove(tmp_path / "empty")
    (tmp_path / "words").write_text("the\na\n")
    with refuses(FileError, "line 1: expected a word and its vector, separated by spaces"):
        load_glove(tmp_path / "words")
    with refuses(FileError, "cannot read"):
        load_glove(tmp_path)


def test_rows_for_a_vocabulary(path):
    path.write_text("the 1 2\ncat 3 4\nother 9 9\ncat 7 7\n<pad> 5 5\n")
    vocabulary = Vocabulary(["cat", "nowhere", "the"])
    rows, found = load_glove(path, vocabulary.words).rows_for(vocabulary)
    assert found == 2
    # The first of two vectors counts; unknown words get the mean of those found.
    assert rows.tolist() == [[0, 0], [2, 3], [3, 4], [2, 3], [1, 2]]
    rows, found = load_glove(path).rows_for(Vocabulary(["nowhere"]))
    assert (rows.tolist(), found) == ([[0, 0]] * 3, 0)
    # MS-2D-TAN's way.
    rows, _ = load_glove(path).rows_for(vocabulary, missing="zero")
    assert rows.tolist() == [[0, 0], [0, 0], [3, 4], [0, 0], [1, 2]]
    with refuses(ConfigError, "missing to be one of mean, zero, got 'one'."):
        load_glove(path).rows_for(vocabulary, missing="one")


def test_a_line_that_is_no_line(path, monkeypatch):
    monkeypatch.setenv("TMAPDIFF_MAX_ITEM_BYTES", "2400")
    path.write_text("door 1 2\n" + "x" * 5000)
    with refuses(SizeLimitError, "glove.txt: expected a line of at most 2,400 bytes"):
        load_glove(path)
