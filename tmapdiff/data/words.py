"""Splitting sentences into words, vocabularies, and GloVe vectors."""

import json
import os
import re
import unicodedata
import warnings
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import regex

from tmapdiff._core.checks import check_choice, check_int, message, short, shown
from tmapdiff._core.files import written_beside
from tmapdiff._core.limits import JSON_GROWTH, read_line
from tmapdiff.data._reading import json_or_none, reading
from tmapdiff.errors import (
    ArgumentError,
    CheckpointError,
    ConfigError,
    FileError,
    UnknownWordsWarning,
)

if TYPE_CHECKING:
    from torch import Tensor

PADDING, UNKNOWN = "<pad>", "<unk>"
WordRule = Literal["unicode", "letters"]
_FORMAT = "tmapdiff vocabulary 1"

# Endings that are separate words in GloVe: person's -> person 's, don't -> do n't.
_ENDING = r"(?:n't|'(?:s|re|ve|ll|d|m))"

# From UAX 29: letters of scripts without spaces. Each is a word, with its combining marks.
_ALONE = r"[\p{L}\p{Nl}--[[\p{WB=ALetter}\p{WB=Hebrew_Letter}]--\p{Han}]]"
_LETTER = rf"[\p{{L}}\p{{N}}--{_ALONE}]"
_MARK = r"[\p{Mn}\p{Mc}]"
# Joiners are part of Persian and Indic spelling; elsewhere they are ignored.
_IN_WORD = rf"(?:{_LETTER}|{_MARK}|(?<={_MARK})[\u200c\u200d]|[\u200c\u200d](?=[\p{{L}}\p{{M}}]))"
_RUN = rf"{_LETTER}{_IN_WORD}"
_LAST = rf"(?![{_LETTER}{_MARK}_])"
_BETWEEN = r"['\p{WB=MidLetter}--[:\ufe13\ufe55\uff1a]]"  # colons separate words
_WORD = regex.compile(
    rf"{_ENDING}{_LAST}|{_RUN}*?(?={_ENDING}{_LAST})|{_RUN}*(?:{_BETWEEN}{_RUN}*)*|(?={_ALONE})\X",
    regex.V1,
)
# Soft hyphens, variation selectors and direction marks, but not zero-width spaces and joiners.
_INVISIBLE = regex.compile(r"[\p{Default_Ignorable_Code_Point}--[\u200b-\u200d]]+", regex.V1)

# The rule of vocabularies that do not declare one: combining marks end words.
_LETTERS_WORD = re.compile(rf"{_ENDING}\b|[^\W_]+?(?={_ENDING}\b)|[^\W_]+(?:'[^\W_]+)*")

_LISTED = 20  # unknown words in a warning


def tokenize(sentence: str, rule: WordRule = "unicode") -> list[str]:
    """Split `sentence` into lowercase words, spelled as in GloVe's English vocabulary.

    Punctuation separates words and is dropped: `door.the` is `door`, `the` and `half-eaten` is
    `half`, `eaten`. English endings are words, as in GloVe: `person's` is `person`, `'s`, and
    `don't` is `do`, `n't`. Other apostrophes inside words stay: `o'clock`.

    Combining marks, as in Hindi or vocalized Arabic, are part of words. In scripts without spaces,
    each character is a word, with its vowel and tone marks: Chinese characters, kana, and Thai,
    Lao, Khmer and Burmese letters. Invisible characters such as soft hyphens are dropped.

    Args:
        sentence: The sentence.
        rule: `unicode`, or `letters` for old vocabularies, which ends words at combining marks and
            does not split scripts without spaces. Both split ASCII alike.

    Raises:
        ArgumentError: If there is no word.
        ConfigError: If `rule` is unknown.

    Example:
        >>> tokenize("Person's putting a book on a shelf.")
        ['person', "'s", 'putting', 'a', 'book', 'on', 'a', 'shelf']
    """
    if not isinstance(sentence, str):
        raise ArgumentError(message("tokenize", "a sentence as str", type(sentence).__name__))
    check_choice("tokenize", "rule", rule, get_args(WordRule))
    text = sentence.replace("\u2019", "'")
    if rule == "letters":
        words = _LETTERS_WORD.findall(unicodedata.normalize("NFC", text).lower())
    else:
        folded = unicodedata.normalize("NFD", _INVISIBLE.sub("", text)).casefold()
        words = _WORD.findall(unicodedata.normalize("NFC", folded))
    if not words:
        raise ArgumentError(message("tokenize", "a sentence with a word", repr(sentence)))
    return words


@dataclass(init=False, repr=False, unsafe_hash=True)
class Vocabulary:
    """The words that a model knows, with indices: 0 is padding, 1 is any unknown word.

    Args:
        words: The words, without the two special ones; the first gets index 2.
        rule: Rule for splitting sentences, as for `tokenize`.

    Attributes:
        words: Words by index, with the two special ones first.

    Raises:
        ArgumentError: If a word is not text, is empty or occurs twice. Methods that read a sentence
            raise it if there is no word.
        ConfigError: If `rule` is unknown.

    Example:
        >>> vocabulary = Vocabulary.from_sentences(["a person opens a door."])
        >>> vocabulary.encode("A person opens the door!")
        tensor([2, 5, 4, 1, 3])
    """

    words: tuple[str, ...]
    rule: WordRule
    _index: dict[str, int] = field(compare=False)

    def __init__(self, words: Iterable[str], rule: WordRule = "unicode") -> None:
        check_choice("Vocabulary", "rule", rule, get_args(WordRule))
        self.rule = rule
        self.words = (PADDING, UNKNOWN, *words)
        self._index = {word: index for index, word in enumerate(self.words)}
        if not all(isinstance(word, str) and word for word in self.words):
            expected, got = "nonempty texts as words", "an empty word or another type"
            raise ArgumentError(message("Vocabulary", expected, got))
        if len(self._index) != len(self.words):
            twice = next(word for word, count in Counter(self.words).items() if count > 1)
            raise ArgumentError(message("Vocabulary", "each word once", f"{twice!r} twice"))

    @classmethod
    def from_sentences(cls, sentences: Iterable[str], min_count: int = 1) -> "Vocabulary":
        """Collect the words of sentences by frequency, then alphabetically.

        Args:
            sentences: The sentences, normally those of the training set.
            min_count: Smallest number of occurrences; rarer words are unknown.

        Raises:
            ArgumentError: Also if `sentences` is a single one, or `min_count` not an integer >= 1.
        """
        who = "Vocabulary.from_sentences"
        if isinstance(sentences, str):
            raise ArgumentError(message(who, "a list of sentences", repr(sentences)))
        min_count = check_int(who, "min_count", min_count, at_least=1)
        counts = Counter(word for sentence in sentences for word in tokenize(sentence))
        frequent = (word for word, count in counts.items() if count >= min_count)
        return cls(sorted(frequent, key=lambda word: (-counts[word], word)))

    def __len__(self) -> int:
        return len(self.words)

    def __contains__(self, word: object) -> bool:
        return word in self._index

    def __repr__(self) -> str:
        return f"Vocabulary({len(self):,} words)"

    def encode(self, sentence: str) -> "Tensor":
        """Return the indices of the words of `sentence`.

        Shape:
            - returns: (L,) int64, L >= 1
        """
        import torch  # here and below, as splitting works without it

        return torch.tensor(self.indices(sentence))

    def indices(self, sentence: str) -> list[int]:
        """Return the indices of the words of `sentence` as a list, without torch."""
        return [self._index.get(word, 1) for word in tokenize(sentence, self.rule)]

    def unknown_words(self, sentence: str) -> list[str]:
        """Return the words of `sentence` that the vocabulary lacks, without duplicates."""
        words = dict.fromkeys(tokenize(sentence, self.rule))
        return [word for word in words if word not in self._index]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the vocabulary to the JSON file `path`.

        Raises:
            FileError: If the file cannot be written.
        """
        content = {"format": _FORMAT, "rule": self.rule, "words": self.words[2:]}
        with written_beside(path) as new:
            new.write_text(json.dumps(content, ensure_ascii=False, indent=0), encoding="utf-8")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Vocabulary":
        """Load a vocabulary that `save` wrote to `path`.

        Old files without a rule get the rule `letters`.

        Raises:
            FileError: If the file is missing or cannot be read.
            CheckpointError: If it is not a vocabulary.
        """
        content = json_or_none(Path(path))
        if not isinstance(content, dict) or content.get("format") != _FORMAT:
            expected = f"a JSON file with the format {_FORMAT!r}"
            raise CheckpointError(message(str(path), expected, "something else"))
        words = content.get("words")
        if not isinstance(words, list):
            raise CheckpointError(message(str(path), "a list of words", type(words).__name__))
        try:
            return cls(words, content.get("rule", "letters"))
        except (ArgumentError, ConfigError, TypeError) as error:
            raise CheckpointError(f"{path}: {error}") from error


def check_known_words(who: str, vocabulary: Vocabulary, queries: Iterable[str]) -> None:
    """Warn of unknown words in queries; raise ArgumentError if all words of a query are unknown."""
    unknown: dict[str, None] = {}
    hopeless: list[str] = []
    for query in queries:
        unknown |= dict.fromkeys(vocabulary.unknown_words(query))
        if set(vocabulary.indices(query)) == {1}:
            hopeless.append(query)
    if hopeless:
        known = ", ".join(vocabulary.words[2:7])
        others = f" and {len(hopeless) - 1} more" if len(hopeless) > 1 else ""
        expected = "queries with a word that the model knows"
        hint = f"It knows {len(vocabulary) - 2:,} words, such as {known}."
        raise ArgumentError(message(who, expected, f"{hopeless[0]!r}{others}", hint))
    if unknown:
        listed = ", ".join(list(unknown)[:_LISTED])
        others = f" and {len(unknown) - _LISTED} more" if len(unknown) > _LISTED else ""
        warnings.warn(
            short(f"{who}: the model does not know these words of the queries: {listed}{others}."),
            UnknownWordsWarning,
            stacklevel=3,
        )


@dataclass(frozen=True, eq=False)
class GloveVectors:
    """The `words` of a GloVe file and their vectors.

    Shape:
        - vectors: (len(words), D) float32
    """

    words: tuple[str, ...]
    vectors: "Tensor"

    def __repr__(self) -> str:
        return f"GloveVectors({len(self.words):,} words, D {self.vectors.shape[1]})"

    def rows_for(
        self, vocabulary: Vocabulary, missing: Literal["mean", "zero"] = "mean"
    ) -> "tuple[Tensor, int]":
        """Return a table of vectors for a vocabulary, and the number of words found.

        Padding is zero.

        Args:
            vocabulary: The words.
            missing: Vector of missing words and the unknown word: the mean of the vectors found
                (zero if there are none), or zero, as in MS-2D-TAN.

        Shape:
            - returns: (len(vocabulary), D) float32, and the number of words found

        Raises:
            ConfigError: If `missing` is unknown.
        """
        check_choice("GloveVectors.rows_for", "missing", missing, ("mean", "zero"))
        wanted = set(vocabulary.words[2:])
        # Reversed, so that the first of duplicate words counts.
        place = {word: i for i, word in reversed(list(enumerate(self.words))) if word in wanted}
        found = [index for index, word in enumerate(vocabulary.words) if word in place]
        table = self.vectors.new_zeros(len(vocabulary), self.vectors.shape[1])
        if found:
            rows = self.vectors[[place[vocabulary.words[index]] for index in found]]
            if missing == "mean":
                table[1:] = rows.mean(dim=0)
            table[found] = rows
        return table, len(found)


def load_glove(path: str | os.PathLike[str], words: Iterable[str] | None = None) -> GloveVectors:
    """Load the word vectors of a GloVe text file, such as `glove.6B.300d.txt`.

    Args:
        path: Text file with a word and its vector per line. Words may contain spaces, as in
            `glove.840B.300d.txt`, but not the first. A first line with two integers (word2vec) is
            skipped.
        words: Words to return if they are in the file, which is many times faster than all.
            Defaults to all.

    Raises:
        FileError: If the file is missing or cannot be read, or the numbers of one of these lines
            are too few or not finite.

    Source: Pennington et al., "GloVe: Global Vectors for Word Representation", EMNLP 2014.
    """
    import torch

    place = Path(path)
    wanted = None if words is None else {one.encode(errors="surrogatepass") for one in words}
    beginnings = {word.split(b" ", 1)[0] for word in wanted or ()}
    found: list[str] = []
    vectors: list[np.ndarray] = []
    width = 0
    with reading(place), place.open("rb") as file, warnings.catch_warnings():
        warnings.simplefilter("error")  # NumPy warns of text that is not numbers
        for number in count(1):
            line = read_line(str(place), file, JSON_GROWTH)
            if not line:
                break
            line = line.rstrip(b" \r\n")
            if number == 1 and len(line.split()) == 2 and line.replace(b" ", b"").isdigit():
                continue
            who = f"{place} line {number}"
            width = width or line.count(b" ")
            if not width:
                expected = "a word and its vector, separated by spaces"
                raise FileError(message(who, expected, _shown(line)))
            if wanted is not None and line.split(b" ", 1)[0] not in beginnings:
                continue
            # Faster than splitting the whole line.
            *word, numbers = line.split(b" ", max(0, line.count(b" ") - width + 1))
            name = b" ".join(word)
            if wanted is not None and name and name not in wanted:
                continue
            try:
                found.append(name.decode())
                vectors.append(np.fromstring(numbers.decode("ascii"), np.float32, sep=" "))
                is_whole = name and vectors[-1].size == width
            except (ValueError, DeprecationWarning):
                is_whole = False
            if not is_whole or not np.isfinite(vectors[-1]).all():
                expected = f"a word in UTF-8 and {width} finite numbers"
                raise FileError(message(who, expected, _shown(line)))
    if not width:
        raise FileError(message(str(place), "a word and its vector per line", "an empty file"))
    stacked = np.stack(vectors) if vectors else np.empty((0, width), np.float32)
    return GloveVectors(tuple(found), torch.from_numpy(stacked))


def _shown(line: bytes) -> str:
    return shown(line.decode(errors="replace"))
