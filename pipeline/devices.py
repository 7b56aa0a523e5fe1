"""Devices: which one a name means, found out to work before anything else; what a processor is."""

from __future__ import annotations

import platform
from pathlib import Path

import torch


class DeviceError(ValueError):
    """A device cannot be used; the message says why."""


def processor() -> str:
    """The processor's name, on Linux; elsewhere its kind."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def find_device(name: str) -> torch.device:
    """The device of a name; `auto` takes a GPU if there is one.

    Raises:
        DeviceError: there is no such device here, or nothing can be computed on it.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError) as error:
        reason = (str(error).splitlines() or ["nothing more is known"])[0]
        raise DeviceError(
            f"--device {name!r} cannot be used: {reason}. `auto` takes a GPU if there is one, "
            "`cpu` needs none"
        ) from error
    return device
