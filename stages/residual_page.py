"""What the page shows of the residual: its energy by class, and laid over some clips."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from cache import TeacherCache
from pipeline.config import Run
from pipeline.views import ClipSpec
from stages.residual import (
    ClassEnergy,
    Energy,
    HeatClip,
    by_class,
    extremes,
    heat_clips,
    read_energies,
)
from stages.svg import add, as_markup, svg_root
from stages.wording import figure

_CELL = 40  # of a heat map, in its own units; the page scales it
_STRONGEST = 0.72  # opacity of the fullest cell; the frame below must stay visible


@dataclass(frozen=True)
class ResidualPage:
    """The energy of the residual, ready for the template.

    Attributes:
        rows: rows that were read, of `whole`.
        whole: rows that the cache has.
        videos: that they are of.
        grid: T', H', W'.
        classes: the classes shown, the greatest energy first.
        hidden: how many between them are left out.
        highest: the greatest energy of a class, or the end of its interval.
        clips: of some classes, with the picture of each step of time.
        scale: the energy of the emptiest cell of these clips, and of the fullest.
    """

    rows: int
    whole: int
    videos: int
    grid: tuple[int, int, int]
    classes: list[ClassEnergy]
    hidden: int
    highest: float
    clips: list[tuple[HeatClip, list[Markup]]]
    scale: tuple[float, float]


def residual_page(run: Run, cache: TeacherCache) -> ResidualPage | None:
    """Read the residual of the rows that a student trains on; None where the cache has none."""
    energies = read_energies(cache, run.distill.splits)
    if energies is None:
        return None
    clip = cache.identity["teachers"]["vit"]["clip"]
    spec = ClipSpec(clip["frames"], clip["stride"], clip["size"])
    clips = heat_clips(energies, cache, Path(run.prepare.root), spec)
    ends = [float(end) for one in clips for end in (one.energy.min(), one.energy.max())]
    scale = (min(ends, default=0.0), max(ends, default=1.0))
    classes, hidden = extremes(by_class(energies))
    time, height, width = energies.cells.shape[1:]
    return ResidualPage(
        rows=len(energies.rows),
        whole=energies.whole,
        videos=len(set(energies.rows.tolist())),
        grid=(time, height, width),
        classes=classes,
        hidden=hidden,
        highest=max((one.interval or (0.0, one.mean))[1] for one in classes) if classes else 1.0,
        clips=[(one, [_heat(one, step, scale) for step in one.energy]) for one in clips],
        scale=scale,
    )


def _heat(clip: HeatClip, energy: Energy, scale: tuple[float, float]) -> Markup:
    """One step of time: a rectangle per cell, the fuller the more energy it has."""
    low, high = scale
    rows: Sequence[Sequence[float]] = energy.tolist()
    label = f"Energy of the residual, {clip.class_name}: " + "; ".join(
        " ".join(figure(value) for value in row) for row in rows
    )
    svg = svg_root(label, _CELL * len(rows[0]), _CELL * len(rows), "heat")
    svg.set("preserveAspectRatio", "none")
    for y, row in enumerate(rows):
        for x, value in enumerate(row):
            box = add(svg, "rect", x=x * _CELL, y=y * _CELL, width=_CELL, height=_CELL)
            box.set("fill-opacity", f"{_STRONGEST * (value - low) / ((high - low) or 1.0):.3f}")
            add(box, "title", f"energy {figure(value)}")
    return as_markup(svg)
