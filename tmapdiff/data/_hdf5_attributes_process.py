"""The process of `AttributeReader`: it answers for names of objects, each in a line of JSON.

Run as a program, with a file, the most bytes of an answer, the seconds that it may take, and the
places to import from.
"""

import json
import math
import sys
from typing import Any

_BYTES_BESIDE = 2**28  # of HDF5, beside what an answer takes


def main() -> None:
    """Answer until nothing is asked."""
    path, most, seconds, *places = sys.argv[1:]
    sys.path[:] = places
    import h5py

    _bound_memory(int(most) + _BYTES_BESIDE)
    _say({})
    file = None
    for line in sys.stdin:
        _bound_time(int(seconds))
        try:
            file = file or h5py.File(path, "r")
            answer: dict[str, Any] = {"attributes": _attributes(file[json.loads(line)], int(most))}
        except Exception as error:
            answer = {"error": " ".join(str(error).split()).rstrip(".") or type(error).__name__}
        _say(answer)


def _attributes(item: Any, most: int) -> dict[str, Any]:
    found = {}
    for name in item.attrs:
        about = item.attrs.get_id(name)
        if math.prod(about.shape or ()) * about.dtype.itemsize > most:
            raise ValueError(f"the attribute {name[:100]!r} is too large")
        found[name] = item.attrs[name]
    return found


def _plain(value: Any) -> Any:
    """Bring what h5py gives into a form that JSON holds."""
    if hasattr(value, "tolist"):
        return value.tolist()
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _bound_memory(further: int) -> None:
    try:
        import resource

        with open("/proc/self/statm") as file:
            pages = int(file.read().split()[0])
    except (ImportError, OSError):
        return  # not Linux
    _set_limit(resource, resource.RLIMIT_AS, pages * resource.getpagesize() + further)


def _bound_time(seconds: int) -> None:
    """End by itself when an answer takes too long: whoever asked may be gone."""
    try:
        import resource
    except ImportError:
        return  # Windows
    used = resource.getrusage(resource.RUSAGE_SELF)
    _set_limit(resource, resource.RLIMIT_CPU, math.ceil(used.ru_utime + used.ru_stime) + seconds)


def _set_limit(resource: Any, kind: int, most: int) -> None:
    _, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def _say(answer: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer, default=_plain) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
