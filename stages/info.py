"""The table of `dualkd-cache info`."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.table import Table

from cache import command
from stages.progress import PlainConsole


def show(facts: dict[str, Any]) -> None:
    """Print what `cache.describe` says, for people."""
    console = PlainConsole()
    rows, failures = facts["rows"], facts["failures"]
    about = Table.grid(padding=(0, 2))
    about.add_row("cache", facts["path"])
    about.add_row("fingerprint", facts["fingerprint"])
    about.add_row("dataset", str(_inside(facts["dataset"], "name")))
    for role, teacher in _mapping(facts["teachers"]).items():
        weights = str(_inside(teacher, "weights_sha256"))[:12]
        about.add_row(role, f"{_inside(teacher, 'model')}, weights {weights}")
        _add_accuracy(about, facts, role)
    for name, teacher in facts["added"].items():
        weights = str(_inside(teacher, "weights_sha256"))[:12]
        _add_accuracy(about, facts, name)
        made = facts["rows_of_added"][name]
        counts = ", ".join(f"{count} {kind}" for kind, count in made.items() if count)
        about.add_row(name, f"{_inside(teacher, 'model')}, weights {weights}, added later")
        about.add_row("", f"rows: {counts}")
    splits = ", ".join(f"{count} {split}" for split, count in facts["samples_by_split"].items())
    parts = f", in {len(facts['parts'])} parts" if len(facts["parts"]) > 1 else ""
    about.add_row("samples", f"{facts['samples']} ({splits}{parts}) × {facts['views']} views")
    about.add_row("coverage", f"{facts['coverage']:.1%}, {rows['valid']} valid rows")
    if facts["origin"]:
        about.add_row("pulled", f"from {facts['origin']['url']}, {facts['origin']['time']}")
    bad = ", ".join(f"{count} {kind}" for kind, count in failures.items() if count) or "none"
    about.add_row("failed rows", bad)
    made_on = [_inside(facts["provenance"], name) for name in ("machine", "device", "decoder")]
    about.add_row("made by", str(_inside(facts["provenance"], "command")))
    about.add_row("on", f"{', '.join(map(str, made_on))}, Python {_python(facts)}")
    packages = (f"{name} {' and '.join(found)}" for name, found in facts["packages"].items())
    about.add_row("with", ", ".join(packages) or "nothing yet")
    about.add_row("size", f"{facts['bytes'] / 1e6:.1f} MB, {facts['row_bytes']} bytes per row")
    console.print(about)
    if facts["origin"] and facts["coverage"] < 1:
        pull = command("dualkd-cache", "pull", facts["origin"]["url"], facts["path"])
        console.print(f"partial; `{pull}` fetches the rest", soft_wrap=True)
    fields = Table(box=box.SIMPLE_HEAD)
    columns = ["field", "row", "dtype", "codec", "bytes/row", "MB", "made"]
    rows_of_fields = [_field_row(name, field) for name, field in facts["fields"].items()]
    told = {"codec": any(row[3] for row in rows_of_fields), "made": facts["coverage"] < 1}
    shown = [index for index, name in enumerate(columns) if told.get(name, True)]
    for index in shown:
        fields.add_column(
            columns[index],
            no_wrap=columns[index] != "codec",  # which gives way where a terminal is narrow
            justify="right" if index > 3 else "left",
        )
    for row in rows_of_fields:
        fields.add_row(*(row[index] for index in shown))
    console.print(fields)
    for sample, reason in facts["errors"].items():
        console.print(f"failed: {sample}: {reason}")


def _add_accuracy(about: Table, facts: dict[str, Any], name: str) -> None:
    """What was measured of a teacher before the cache was made, where something was."""
    accuracy = _inside(_inside(facts["provenance"], "accuracy"), name)
    top1, top5 = (_inside(accuracy, figure) for figure in ("top1", "top5"))
    if isinstance(top1, float) and isinstance(top5, float):
        videos = f"{_inside(accuracy, 'videos')} videos of {_inside(accuracy, 'split')}"
        about.add_row("", f"top-1 {top1:.1%}, top-5 {top5:.1%}, {videos}")


def _field_row(name: str, field: dict[str, Any]) -> list[str]:
    size = "×".join(str(size) for size in field["shape"][2:]) or "1"
    return [
        name,
        f"{size} JPEG" if field["dims"][-1].startswith("jpeg") else size,
        field["dtype"],
        " ".join(str(value) for value in (field["codec"] or {}).values()),
        str(field["row_bytes"]),
        f"{field['bytes'] / 1e6:.2f}",
        f"{field['coverage']:.1%}",
    ]


def _python(facts: dict[str, Any]) -> str:
    return str(_inside(facts["provenance"], "python"))


def _mapping(value: object) -> dict[str, Any]:
    """What should be a mapping; a cache from elsewhere may hold anything there."""
    return value if isinstance(value, dict) else {}


def _inside(value: object, key: str) -> Any:
    return _mapping(value).get(key, "unknown")
