"""Where to compute, as options name it."""

from typing import Annotated

import typer

from tmapdiff.errors import ConfigError

DeviceOption = Annotated[
    str,
    typer.Option(
        metavar="DEVICE", help="Where to compute: cpu, cuda, cuda:1, ...; auto takes a GPU if any."
    ),
]


def find_device(name: str) -> str:
    """Return the device that `name` means; `auto` is a GPU if there is one.

    Raises:
        ConfigError: If there is no such device.
    """
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    # torch words the lack of a device in errors of several kinds.
    except (RuntimeError, AssertionError, ValueError, NotImplementedError) as error:
        reason = (str(error).splitlines() or [""])[0].rstrip(".")
        raise ConfigError(
            f"--device: expected a device of this machine, got {name!r}. {reason}."
        ) from None
    return name
