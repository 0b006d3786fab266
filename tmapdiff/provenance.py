"""Provenance of results: versions, commit and machine, to store with them."""

import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

_PACKAGES = ("tmapdiff", "torch", "diffusers", "timm", "accelerate", "einops", "numpy")


def describe_run(folder: str | None = None) -> dict[str, Any]:
    """Describe the software and machine of this process, as JSON-compatible values.

    Args:
        folder: A folder of the git checkout to describe. Defaults to the working folder.

    Returns:
        `versions` of Python and packages (None for missing ones); `git_commit`, with "-dirty"
        appended if files are modified, or None outside a checkout; `machine`, the operating system
        and processor architecture; `gpu`, its name or None; `threads` that torch uses.
    """
    return {
        "versions": {"python": platform.python_version(), **{p: _version(p) for p in _PACKAGES}},
        "git_commit": _git_commit(folder),
        "machine": f"{sys.platform} {platform.machine()}",
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git_commit(folder: str | None) -> str | None:
    try:
        git = ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
        commit = subprocess.check_output(
            git, cwd=folder, stderr=subprocess.DEVNULL, text=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return commit.strip() or None
