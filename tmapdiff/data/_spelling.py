"""How a feature store spells the ids of videos that annotations spell otherwise."""

from collections.abc import Container, Iterable, Mapping, Sequence
from itertools import islice, product
from typing import Any

# As TACoS' and DiDeMo's ids have them in some feature files, and have not in others.
_SUFFIXES = (".avi", ".mp4", ".mkv", ".mov", ".webm", ".mpg", ".mpeg", ".wmv", ".m4v", ".3gp")
_PREFIX = "v_"  # of ActivityNet's
_SHOWN = 3


def find_spelling(video_ids: Sequence[str], store: Container[str]) -> tuple[str, Mapping[str, str]]:
    """Find how a store spells the ids of videos.

    As they are, if the store has one of them. Else with or without a suffix, with or without `v_`,
    or both: the spelling that finds the most videos, for all ids alike.

    Args:
        video_ids: The ids, each once.
        store: A feature store, or any container of ids.

    Returns:
        How the store's spelling differs, in words, empty if it does not; and the store's ids of the
        videos that it has, by their own.
    """
    found: tuple[str, dict[str, str]] = "", {one: one for one in video_ids if one in store}
    if found[1]:
        return found
    for prefix, suffix in product((None, _PREFIX, ""), (None, "", *_SUFFIXES)):
        spelled = {one: _spelled(one, prefix, suffix) for one in video_ids}
        there = {one: name for one, name in spelled.items() if name and name in store}
        # Not a spelling that makes one video of two.
        if len(there) > len(found[1]) and len(set(there.values())) == len(there):
            found = _in_words(prefix, suffix), there
    return found


def some_ids(store: Any) -> tuple[str, ...]:
    """Give a few of the ids in a store, or a container, if it can list them."""
    for part in (store, getattr(store, "store", None), *getattr(store, "stores", ())):
        ids = part if isinstance(part, Iterable) else getattr(part, "video_ids", ())
        if found := tuple(islice(ids, _SHOWN)):
            return found
    return ()


def _spelled(video_id: str, prefix: str | None, suffix: str | None) -> str:
    """Give an id another prefix and suffix, or none if they are empty; None keeps its own."""
    if prefix is not None:
        video_id = prefix + video_id.removeprefix(_PREFIX)
    return video_id if suffix is None else _without_suffix(video_id) + suffix


def _in_words(prefix: str | None, suffix: str | None) -> str:
    words = [] if prefix is None else [f"with {prefix!r}" if prefix else f"without {_PREFIX!r}"]
    if suffix is not None:
        words.append(f"with {suffix!r}" if suffix else "without suffix")
    return " and ".join(words)


def _without_suffix(video_id: str) -> str:
    suffix = next((one for one in _SUFFIXES if video_id.lower().endswith(one)), "")
    return video_id[: len(video_id) - len(suffix)]
