"""The account of `prepare`: what a dataset lists and what of it is there, as JSON and on screen."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
from rich.table import Table

from pipeline.datasets.listing import Listing
from stages.progress import console
from stages.wording import count, percent, plural

STATUSES = ("found", "missing", "unreadable")
_WORST = 3  # classes named on screen


def _entry(counts: Mapping[str, int], *, probed: bool) -> dict[str, int | None]:
    unreadable = counts.get("unreadable", 0) if probed else None
    return {
        "listed": sum(counts.values()),
        "found": counts.get("found", 0),
        "missing": counts.get("missing", 0),
        "unreadable": unreadable,
    }


def describe(listing: Listing, *, root: str, probed: bool) -> dict[str, Any]:
    """The account: in total, per split, and per class of each head; listed is the sum of the rest.

    Classes are counted over all splits, so that those without any row are there with zeros.
    """
    splits: dict[str, Counter[str]] = defaultdict(Counter)
    classes = {head: [Counter[str]() for _ in names] for head, names in listing.classes.items()}
    for row in listing.rows:
        splits[row.sample.split][row.status] += 1
        for head, label in row.sample.labels.items():
            classes[head][label][row.status] += 1
    return {
        "root": root,
        "layout": listing.layout,
        "notes": listing.notes,
        **_entry(Counter[str](row.status for row in listing.rows), probed=probed),
        "splits": {name: _entry(counts, probed=probed) for name, counts in splits.items()},
        "classes": {
            head: {
                name: _entry(counts, probed=probed)
                for name, counts in zip(listing.classes[head], of_head, strict=True)
            }
            for head, of_head in classes.items()
        },
    }


def not_found(listing: Listing) -> pa.Table:
    """The rows that are not in the samples table: which, where they would lie, and why not."""
    rows = [row for row in listing.rows if row.status != "found"]
    names = [
        " / ".join(listing.classes[head][label] for head, label in row.sample.labels.items())
        for row in rows
    ]
    columns = {
        "sample_id": [row.sample.sample_id for row in rows],
        "path": [row.sample.path for row in rows],
        "split": [row.sample.split for row in rows],
        "class": names,
        "status": [row.status for row in rows],
        "reason": [row.reason for row in rows],
    }
    return pa.table({name: pa.array(cells, pa.string()) for name, cells in columns.items()})


def show(account: Mapping[str, Any]) -> None:
    """Print the account: a line per split, and the classes that lack most."""
    console.print(f"{account['root']}: {account['layout']}")
    table = Table(box=None, pad_edge=False)
    table.add_column("split")
    for name in ("listed", *STATUSES):
        table.add_column(name, justify="right")
    splits = list(account["splits"].items())
    for name, counts in [*splits, *([("all", account)] if len(splits) > 1 else [])]:
        cells = [counts["listed"], *(counts[status] for status in STATUSES)]
        table.add_row(name, *("–" if cell is None else count(cell) for cell in cells))
    console.print(table)
    worst = _worst(account)
    if worst:
        console.print(f"classes that lack most: {', '.join(worst)}")
    for note in account["notes"]:
        console.print(note)


def _worst(account: Mapping[str, Any]) -> list[str]:
    """The classes with the greatest number of rows that are not in the table."""
    head = next(iter(account["classes"]))
    lacking = [
        (counts["listed"] - counts["found"], counts["listed"], name)
        for name, counts in account["classes"][head].items()
        if counts["listed"] > counts["found"]
    ]
    worst = sorted(lacking, key=lambda item: (-item[0], item[2]))[:_WORST]
    return [f"{name} ({count(lost)} of {count(listed)})" for lost, listed, name in worst]


def warnings(account: Mapping[str, Any], wanted: Mapping[str, list[str]]) -> list[str]:
    """What of an account a user should look into.

    Args:
        account: see `describe`.
        wanted: by split, the fields of the config that name it.
    """
    found = []
    for name, counts in account["splits"].items():
        lost = counts["listed"] - counts["found"]
        if not counts["found"]:
            found.append(f"split {name}: none of its {plural(counts['listed'], 'sample')} is here")
        elif lost > counts["listed"] / 2:
            share = percent(lost / counts["listed"])
            found.append(f"split {name}: {share} is not here; is this the whole dataset?")
    labelled = sum(
        one["found"] for of_head in account["classes"].values() for one in of_head.values()
    )
    if account["found"] and not labelled:
        found.append("no sample has a label: nothing can be taught or evaluated")
    for name, fields in wanted.items():
        if not account["splits"].get(name, {"found": 0})["found"]:
            where = " and ".join(fields)
            found.append(f"the config reads split {name} ({where}), of which there is nothing")
    return found
