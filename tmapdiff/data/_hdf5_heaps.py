"""Program of `_hdf5.read_heaps`: print all attributes of HDF5 objects.

Arguments are the file, the limits of JSON bytes per object and of seconds, and the import paths.
The names of the objects come on standard input as JSON.
"""

import json
import math
import sys
import time
from typing import Any

_BYTES_BESIDE = 2**28  # for HDF5 itself


def main() -> None:
    """Print the attributes of each object as a line of JSON."""
    path, most, seconds, *sys.path[:] = sys.argv[1:]
    import h5py

    _set_limits(int(most) + _BYTES_BESIDE, int(seconds))
    with h5py.File(path, "r") as file:
        for name in json.load(sys.stdin):
            line = json.dumps(_attributes(file[name], int(most)), default=_plain)
            if len(line) > int(most):
                raise ValueError(f"the attributes of {name[:100]!r} are too large")
            sys.stdout.write(f"{line}\n")


def _attributes(item: Any, most: int) -> dict[str, Any]:
    for name in item.attrs:
        declared = item.attrs.get_id(name)
        if math.prod(declared.shape or ()) * declared.dtype.itemsize > most:
            raise ValueError(f"the attribute {name[:100]!r} is too large")
    return dict(item.attrs)


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return value.tolist()
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _set_limits(memory: int, seconds: int) -> None:
    """Limit memory and time where possible, as the parent process may be gone."""
    try:
        import resource

        with open("/proc/self/statm") as file:
            memory += int(file.read().split()[0]) * resource.getpagesize()
    except (ImportError, OSError):
        return  # not Linux
    seconds += math.ceil(time.process_time())
    for kind, most in ((resource.RLIMIT_AS, memory), (resource.RLIMIT_CPU, seconds)):
        _, hard = resource.getrlimit(kind)
        soft = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (soft, hard))


if __name__ == "__main__":
    main()
