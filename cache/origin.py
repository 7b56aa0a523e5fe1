"""Where a cache was pulled from, so that a partial one can say how to complete it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cache.layout import ORIGIN, own_path
from cache.schema import DamagedError
from cache.sealed import read_sealed, write_sealed
from cache.selection import Selection


@dataclass(frozen=True)
class Origin:
    """Where a cache was pulled from.

    Attributes:
        url: the address of the cache, without secrets.
        time: when something was last pulled, UTC.
        asked: what was asked for that time; empty where it was all.
    """

    url: str
    time: str
    asked: dict[str, Any]


def read_origin(folder: Path) -> Origin | None:
    """Where a cache was pulled from; None where it was made here, or nobody knows any more."""
    try:
        document = read_sealed(own_path(folder, ORIGIN))
        return Origin(str(document["url"]), str(document["time"]), dict(document["asked"]))
    except (FileNotFoundError, DamagedError, KeyError, TypeError, ValueError):
        return None  # it is only for messages


def write_origin(folder: Path, url: str, selection: Selection) -> None:
    """Note where a cache was pulled from."""
    time = datetime.now(UTC).isoformat(timespec="seconds")
    write_sealed(folder / ORIGIN, {"url": url, "time": time, "asked": selection.to_json()})
