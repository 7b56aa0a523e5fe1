"""Small files that stages write: whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.csv

from pipeline.files import write_whole


def write_text(path: Path, text: str) -> None:
    """Write a text file; see `write_whole`."""
    write_whole(path, text.encode())


def write_json(path: Path, content: object) -> None:
    """Write JSON for people and programs, sorted as given."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def write_csv(path: Path, table: pa.Table) -> None:
    """Write a table as CSV."""
    buffer = pa.BufferOutputStream()
    pa.csv.write_csv(table, buffer)
    write_text(path, buffer.getvalue().to_pybytes().decode())
