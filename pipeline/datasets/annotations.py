"""Reading annotations: CSVs and lists, row by row, each with the place that messages name."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from pipeline.datasets.listing import DatasetError


class ColumnsError(DatasetError):
    """A CSV lacks a column; perhaps it is of something else."""


def read_csv(
    path: Path, required: Sequence[str], optional: Sequence[str] = ()
) -> Iterator[tuple[str, list[str]]]:
    """Yield the place (file and line) and the wanted cells of every row that is not empty.

    Quoted cells, a byte order mark, CRLF and further columns are as good as none. Cells come in the
    order of `required`, `optional`, without spaces around them; of a column that the file lacks, as
    empty ones.

    Raises:
        ColumnsError: the header lacks a required column.
        DatasetError: the file is empty or no text, or a row has more or fewer cells than the
            header.
    """
    if path.stat().st_size == 0:
        raise DatasetError(
            f"{path} is empty (0 bytes); expected columns are {_wanted(required, optional)}"
        )
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file)
        try:
            header = [name.strip() for name in next(reader, [])]
            columns = _columns(path, header, required, optional)
            for row in reader:
                if not "".join(row).strip():
                    continue
                if len(row) != len(header):
                    raise DatasetError(
                        f"{path}, line {reader.line_num}: {len(row)} cells, but the header has "
                        f"{len(header)} (a comma without quotes?): {','.join(row)[:200]}"
                    )
                place = f"{path}, line {reader.line_num}"
                yield place, ["" if at is None else row[at].strip() for at in columns]
        except (csv.Error, UnicodeDecodeError) as error:
            raise DatasetError(f"{path} is no CSV in UTF-8: {error}") from error


def _wanted(required: Sequence[str], optional: Sequence[str]) -> str:
    return ",".join([*required, *(f"[{name}]" for name in optional)])


def _columns(
    path: Path, header: list[str], required: Sequence[str], optional: Sequence[str]
) -> list[int | None]:
    lacking = [name for name in required if name not in header]
    if lacking:
        raise ColumnsError(
            f"{path} lacks the column{'s' if len(lacking) > 1 else ''} {', '.join(lacking)}; its "
            f"first line is {','.join(header)[:200]!r}, expected columns are "
            f"{_wanted(required, optional)}"
        )
    twice = sorted({name for name in (*required, *optional) if header.count(name) > 1})
    if twice:
        raise DatasetError(f"{path} has the column {twice[0]} twice")
    return [header.index(name) if name in header else None for name in (*required, *optional)]


def read_pairs(path: Path) -> Iterator[tuple[str, str, str]]:
    """Yield the place, the name and the last word of every line that is not empty.

    Raises:
        DatasetError: a line is one word only, or the file is no text.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path} is no text in UTF-8: {error}") from error
    for number, line in enumerate(lines, start=1):
        words = line.rsplit(maxsplit=1)
        if not words:
            continue
        place = f"{path}, line {number}"
        if len(words) == 1:
            raise DatasetError(f"{place}: got {line.strip()!r}, expected a name and a number")
        yield place, words[0].strip(), words[1]


def seconds(text: str, place: str, column: str) -> float:
    """A number of seconds: `59`, `1.5`, or a time stamp as `00:01:02.50`.

    Raises:
        DatasetError: it is none.
    """
    try:
        parts = [float(part) for part in text.split(":")]
    except ValueError:
        parts = []
    if len(parts) not in (1, 3) or not all(math.isfinite(part) and part >= 0 for part in parts):
        raise DatasetError(
            f"{place}: {column} is {text!r}, expected seconds, as 59 or 1.5, or HH:MM:SS.ss"
        )
    if len(parts) == 1:
        return parts[0]
    return 3600 * parts[0] + 60 * parts[1] + parts[2]


def class_index(text: str, place: str, column: str, count: int) -> int:
    """A class by its number.

    Raises:
        DatasetError: it is none of the classes.
    """
    if not text.isdecimal() or int(text) >= count:
        raise DatasetError(
            f"{place}: {column} is {text!r}, expected one of the {count} classes, 0 to {count - 1}"
        )
    return int(text)
