"""Matching the video ids of annotations with those of a feature store."""

from collections.abc import Container, Iterable, Mapping, Sequence
from itertools import islice, product
from typing import Any

# Ids of TACoS and DiDeMo have them in some feature files, but not in others.
SUFFIXES = (".avi", ".mp4", ".mkv", ".mov", ".webm", ".mpg", ".mpeg", ".wmv", ".m4v", ".3gp")
_PREFIX = "v_"  # of ActivityNet's ids
_SHOWN = 3


def find_spelling(video_ids: Sequence[str], store: Container[str]) -> tuple[str, Mapping[str, str]]:
    """Return how a store spells distinct ids, in words, and its id of each video in it.

    If it has any of the ids, they are spelled alike, and the words are empty. Otherwise it may add
    or omit a suffix or `v_` in all ids; the spelling that matches the most videos is chosen.
    """
    found: tuple[str, dict[str, str]] = "", {one: one for one in video_ids if one in store}
    if found[1]:
        return found
    for prefix, suffix in product((None, _PREFIX, ""), (None, "", *SUFFIXES)):
        spelled = {one: _spelled(one, prefix, suffix) for one in video_ids}
        there = {one: name for one, name in spelled.items() if name and name in store}
        # The spelling must not map two videos to one.
        if len(there) > len(found[1]) and len(set(there.values())) == len(there):
            found = _in_words(prefix, suffix), there
    return found


def some_ids(store: Any) -> tuple[str, ...]:
    """Return a few ids in a store or container, if it can list them."""
    for part in (store, getattr(store, "store", None), *getattr(store, "stores", ())):
        ids = part if isinstance(part, Iterable) else getattr(part, "video_ids", ())
        if found := tuple(islice(ids, _SHOWN)):
            return found
    return ()


def _spelled(video_id: str, prefix: str | None, suffix: str | None) -> str:
    """Replace the prefix and suffix of an id; None keeps them, "" removes them."""
    if prefix is not None:
        video_id = prefix + video_id.removeprefix(_PREFIX)
    if suffix is not None:
        old = next((one for one in SUFFIXES if video_id.lower().endswith(one)), "")
        video_id = video_id[: len(video_id) - len(old)] + suffix
    return video_id


def _in_words(prefix: str | None, suffix: str | None) -> str:
    words = [] if prefix is None else [f"with {prefix!r}" if prefix else f"without {_PREFIX!r}"]
    if suffix is not None:
        words.append(f"with {suffix!r}" if suffix else "without suffix")
    return " and ".join(words)
