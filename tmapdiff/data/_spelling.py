"""How a feature store spells the ids of videos that annotations spell otherwise."""

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from itertools import islice, product
from typing import Any

# As TACoS' and DiDeMo's ids have them in some feature files, and have not in others.
_SUFFIXES = (".avi", ".mp4", ".mkv", ".mov", ".webm", ".mpg", ".mpeg", ".wmv", ".m4v", ".3gp")
_PREFIX = "v_"  # of ActivityNet's
_SHOWN = 3


def find_spelling(video_ids: Sequence[str], store: Container[str]) -> tuple[str, Mapping[str, str]]:
    """Find how a store spells ids: as they are, if it has any so; else without or with a suffix.

    Or with or without `v_`, or both. One spelling holds for all ids: that of which the store has
    the most videos.

    Args:
        video_ids: The ids, each once.
        store: A feature store, or any container of ids.

    Returns:
        What differs, in words, empty if nothing does; and the store's ids of the videos it has.
    """
    found: tuple[str, dict[str, str]] = "", {one: one for one in video_ids if one in store}
    if found[1]:
        return found
    for words, spell in _spellings():
        spelled = {one: spell(one) for one in video_ids}
        there = {one: name for one, name in spelled.items() if name and name in store}
        # Two videos that it would make one are not spelled so.
        if len(there) > len(found[1]) and len(set(there.values())) == len(there):
            found = words, there
    return found


def some_ids(store: Any) -> tuple[str, ...]:
    """Give a few of the ids in a store, or a container, if it can list them."""
    for part in (store, getattr(store, "store", None), *getattr(store, "stores", ())):
        ids = part if isinstance(part, Iterable) else getattr(part, "video_ids", ())
        if found := tuple(islice(ids, _SHOWN)):
            return found
    return ()


def _spellings() -> Iterator[tuple[str, Callable[[str], str]]]:
    prefixes: dict[str, Callable[[str], str]] = {
        "": lambda one: one,
        f"with {_PREFIX!r}": lambda one: one if one.startswith(_PREFIX) else _PREFIX + one,
        f"without {_PREFIX!r}": lambda one: one.removeprefix(_PREFIX),
    }
    suffixes: dict[str, Callable[[str], str]] = {
        "": lambda one: one,
        "without suffix": _without_suffix,
        **{
            f"with {suffix!r}": lambda one, suffix=suffix: _without_suffix(one) + suffix  # type: ignore[misc]
            for suffix in _SUFFIXES
        },
    }
    for (one, change), (other, change_too) in product(prefixes.items(), suffixes.items()):
        words = " and ".join(filter(None, (one, other)))
        yield words, lambda video_id, a=change, b=change_too: b(a(video_id))  # type: ignore[misc]


def _without_suffix(video_id: str) -> str:
    suffix = next((one for one in _SUFFIXES if video_id.lower().endswith(one)), "")
    return video_id[: len(video_id) - len(suffix)]
