"""What `export` measured of the student's formats, as far as it is there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def exported_formats(content: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """The formats of `export/export.json`: name, bytes, top-1, parity; empty without any.

    Args:
        content: of the file; None where nothing was exported.
    """
    return [] if content is None else list(content.get("formats", []))
