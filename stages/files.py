"""Small files that stages write: whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv

from pipeline.files import write_whole


def write_text(path: Path, text: str) -> None:
    """Write a text file; see `write_whole`."""
    write_whole(path, text.encode())


def write_json(path: Path, content: object) -> None:
    """Write JSON for people and programs, sorted as given."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def write_json_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Write a line of JSON for each record."""
    write_text(path, "".join(f"{json.dumps(record)}\n" for record in records))


def write_csv(path: Path, table: pa.Table) -> None:
    """Write a table as CSV."""
    buffer = pa.BufferOutputStream()
    pa.csv.write_csv(table, buffer)
    write_text(path, buffer.getvalue().to_pybytes().decode())
