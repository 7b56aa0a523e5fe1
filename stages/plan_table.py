"""The table of `dualkd-cache plan`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.table import Table

from stages.progress import PlainConsole
from stages.wording import count, duration, plural, size


def show(facts: Mapping[str, Any]) -> None:
    """Print a plan for people."""
    console = PlainConsole()
    console.print(_about(facts))
    sizes = facts["bytes"]
    fields = _table("field", "size", "share")
    for name, each in sizes["by_field"].items():
        fields.add_row(name, size(each), f"{each / sizes['all']:.1%}")
    console.print(fields)
    if facts["less"]:
        less = _table("with less", "size", "wall")
        for name, one in facts["less"].items():
            less.add_row(name, size(one["bytes"]), _time(one["wall_hours"]))
        console.print(less)


def _about(facts: Mapping[str, Any]) -> Table:
    """Rows, bytes, the time of each part, and what it comes to."""
    seconds, forecast = facts["seconds"], facts["forecast"]
    about = Table.grid(padding=(0, 2))
    about.add_row(
        "rows",
        f"{count(facts['rows'])}: {count(facts['samples'])} samples "
        f"({', '.join(facts['splits'])}) × {plural(facts['views'], 'view')}",
    )
    sizes = facts["bytes"]
    about.add_row("cache", f"{size(sizes['all'])}, {count(sizes['row'])} bytes a row")
    if (standing := facts["standing"]) is not None:
        about.add_row("there", _standing(facts, standing))
    if facts["memory_bytes"]:
        about.add_row("memory", f"{size(facts['memory_bytes'])} for chunks on their way, at most")
    encoding = f", JPEG {1000 * seconds['encode']:.1f} ms a view" if seconds["encode"] else ""
    about.add_row(
        "decoding",
        f"{1000 * seconds['decode']:.1f} ms a sample with all its views{encoding}: "
        f"{_time(forecast['decode_core_hours'])} of one core",
    )
    for name, each in seconds["networks"].items():
        about.add_row(name, f"{1000 * each:.1f} ms a view on {facts['device']}")
    about.add_row("storing", f"{1000 * seconds['store']:.1f} ms a view")
    about.add_row(
        "networks", f"{_time(forecast['network_hours'])} on {facts['device']}, with storing"
    )
    if facts["gate_videos"]:
        about.add_row(
            "gate",
            f"{_time(forecast['gate_hours'])} before the first row: teachers scored on "
            f"{plural(facts['gate_videos'], 'video')}",
        )
    if facts["standing"] is None:
        about.add_row("projection", f"{_time(forecast['fit_hours'])} before the first row")
    about.add_row("wall", f"{_time(forecast['wall_hours'])} with {_who(facts)}")
    if forecast["decoding_limits"] and forecast["network_hours"]:
        enough = plural(forecast["decoders_enough"], "decoder")
        about.add_row("", f"decoding is the limit; {enough} with a core each would be enough")
    about.add_row(
        "break-even",
        f"after {facts['break_even_epochs']:.1f} epochs, of one student or of several, teachers in "
        f"every step would have cost more; a student takes {facts['student_epochs']}",
    )
    return about


def _who(facts: Mapping[str, Any]) -> str:
    """The processes that work, in words."""
    decoders = f"--decoders {facts['decoders']}"
    if facts["decoders"] > facts["cores"]:
        decoders += f" on {plural(facts['cores'], 'core')}"
    if facts["workers"] in (None, 1):
        return decoders
    together = ", which share this CPU" if facts["device"] == "cpu" else ", with a GPU each"
    return f"{decoders} of each of {facts['workers']} workers{together}"


def _standing(facts: Mapping[str, Any], standing: Mapping[str, Any]) -> str:
    """What is there, and what is still to be made."""
    there = (
        f"{standing['place']}: {count(standing['samples'])} samples × "
        f"{plural(standing['views'], 'view')}"
    )
    left = facts["to_make"]
    if not left["samples"]:
        return f"{there}; nothing is left to be made"
    parts = [f"{count(left['samples'])} samples to decode"]
    parts += [f"{name} {count(views)} views" for name, views in left["views"].items() if views]
    parts += [f"clips of {count(left['clip_views'])} views"] if left["clip_views"] else []
    return f"{there}; still to be made: {', '.join(parts)}: {size(left['bytes'])}"


def _table(first: str, *figures: str) -> Table:
    """An empty table of figures by name."""
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column(first)
    for name in figures:
        table.add_column(name, justify="right")
    return table


def _time(hours: float) -> str:
    return duration(3600 * hours)
