"""Charts as SVG: lines over epochs, grids of shaded cells, dots with a mean and its interval.

Colours and fonts are classes that the page's style sheet gives a look, light and dark.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar
from xml.etree import ElementTree

from markupsafe import Markup

from stages.svg import add, as_markup, svg_root
from stages.wording import figure

Item = TypeVar("Item")
_WIDTH, _HEIGHT = 360, 210  # about the width of a telephone: text keeps its size there
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 12, 10, 34
_LABEL_CHARACTERS = 15
_STRONGEST = 0.55  # opacity of the fullest cell; figures on it must stay readable


@dataclass(frozen=True)
class Line:
    """One line of a chart.

    Attributes:
        name: for the tooltips.
        kind: the CSS class that gives colour and dashes.
        points: (x, y), from left to right, finite.
    """

    name: str
    kind: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Cell:
    """One cell of a grid.

    Attributes:
        kind: the CSS class that gives the hue.
        strength: how full of it, in [0, 1].
        title: the tooltip.
        text: what is written in the cell.
    """

    kind: str
    strength: float
    title: str
    text: str = ""


def line_chart(
    label: str,
    lines: Sequence[Line],
    *,
    x_name: str,
    low: float | None = None,
    high: float | None = None,
    mark: float | None = None,
    show: Callable[[float], str] = figure,
) -> Markup:
    """Draw lines with a dot for each value; the values are the dots' tooltips.

    Args:
        label: what the chart shows, for those who do not see it.
        lines: at least one, with at least one point.
        x_name: what the x axis counts.
        low: lower end of the y axis; the least value if not given.
        high: upper end; the greatest value if not given.
        mark: a y value with a line across.
        show: how y values are written.
    """
    values = [y for line in lines for _, y in line.points]
    y_ticks = ticks(min(values) if low is None else low, max(values) if high is None else high)
    xs = sorted({x for line in lines for x, _ in line.points})
    frame = _Frame(xs[0], xs[-1], y_ticks[0], y_ticks[-1])
    svg = svg_root(label, _WIDTH, _HEIGHT, "chart")
    for y in y_ticks:
        _add_rule(svg, frame.down(y), "rule")
        add(svg, "text", show(y), cls="tick end", x=_LEFT - 6, y=frame.down(y) + 4)
    below = _HEIGHT - _BOTTOM + 15.0
    for x in _spread(xs, 8):
        add(svg, "text", f"{x:g}", cls="tick middle", x=frame.across(x), y=below)
    add(svg, "text", x_name, cls="tick middle", x=(_LEFT + _WIDTH - _RIGHT) / 2, y=_HEIGHT - 4)
    if mark is not None:
        _add_rule(svg, frame.down(mark), "mark")
    for line in lines:
        _add_line(
            svg, frame, line, [f"{line.name}, {x_name} {x:g}: {show(y)}" for x, y in line.points]
        )
    return as_markup(svg)


@dataclass(frozen=True)
class _Frame:
    """The ends of both axes; from values to places."""

    x_low: float
    x_high: float
    y_low: float
    y_high: float

    def across(self, x: float) -> float:
        share = (x - self.x_low) / ((self.x_high - self.x_low) or 1.0)
        return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)

    def down(self, y: float) -> float:
        share = (y - self.y_low) / (self.y_high - self.y_low)
        return _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)


def _add_line(svg: ElementTree.Element, frame: _Frame, line: Line, titles: Sequence[str]) -> None:
    places = [(frame.across(x), frame.down(y)) for x, y in line.points]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    add(svg, "polyline", cls=f"line {line.kind}", points=path)
    radius = 2.4 if len(places) <= 40 else 1.2
    for (x, y), title in zip(places, titles, strict=True):
        dot = add(svg, "circle", cls=f"dot {line.kind}", cx=x, cy=y, r=radius)
        add(dot, "title", title)


def _add_rule(svg: ElementTree.Element, y: float, kind: str) -> None:
    add(svg, "line", cls=kind, x1=_LEFT, x2=_WIDTH - _RIGHT, y1=y, y2=y)


def grid_chart(
    label: str,
    rows: Sequence[str],
    columns: Sequence[str],
    cells: Sequence[Sequence[Cell | None]],
    *,
    cell_height: float,
    cell_width: float | None = None,
    ends: Sequence[str] = (),
    slanted: bool = False,
) -> Markup:
    """Draw a grid of shaded cells; a cell that is None stays empty.

    Args:
        label: what the grid shows, for those who do not see it.
        rows: names, top to bottom.
        columns: names, left to right; where they are slanted they stand above, else below.
        cells: by row, then by column.
        cell_height: of one cell.
        cell_width: of one cell; by default the chart gets the width of a line chart.
        ends: a word at the right of each row.
        slanted: turn the names of the columns.
    """
    left = 8 + 6.3 * max(len(_shortened(name)) for name in rows)
    top = 12 + 5.2 * max(len(_shortened(name)) for name in columns) if slanted else 2.0
    right = 4 + 3.6 * len(_shortened(columns[-1])) if slanted else 46.0 if ends else 4.0
    cell = (cell_width or (_WIDTH - left - right) / len(columns), cell_height)
    width, height = left + len(columns) * cell[0] + right, top + len(rows) * cell[1]
    svg = svg_root(label, width, height + (4 if slanted else 20), "grid")
    for row, name in enumerate(rows):
        middle = top + (row + 0.5) * cell[1] + 4
        add(svg, "text", _shortened(name), cls="tick end", x=left - 6, y=middle)
        for column, content in enumerate(cells[row]):
            if content is not None:
                _add_cell(svg, content, left + column * cell[0], top + row * cell[1], cell)
        if ends:
            x = left + len(columns) * cell[0] + 6
            add(svg, "text", ends[row], cls="tick", x=x, y=middle)
    shown = range(len(columns)) if slanted else _spread(range(len(columns)), 8)
    for column in shown:
        x, name = left + (column + 0.5) * cell[0], _shortened(columns[column])
        if slanted:
            turn = f"translate({x + 3:.1f} {top - 5:.1f}) rotate(-55)"
            add(svg, "text", name, cls="tick", transform=turn)
        else:
            add(svg, "text", name, cls="tick middle", x=x, y=height + 14)
    return as_markup(svg)


@dataclass(frozen=True)
class Spread:
    """One row of a chart of dots.

    Attributes:
        name: at its left.
        kind: the CSS class that gives the colour.
        values: what each is called, and what it is.
        mean: of the values.
        interval: of the mean; None where there is none.
    """

    name: str
    kind: str
    values: Sequence[tuple[str, float]]
    mean: float
    interval: tuple[float, float] | None


def dot_chart(
    label: str,
    rows: Sequence[Spread],
    *,
    x_name: str,
    mark: float | None = None,
    show: Callable[[float], str] = figure,
    style: str = "",
) -> Markup:
    """Draw a row of dots for each of several things, with their mean and its interval.

    Args:
        label: what the chart shows, for those who do not see it.
        rows: at least one, top to bottom.
        x_name: what the x axis counts.
        mark: an x value with a line down.
        show: how x values are written.
        style: a style sheet makes it a file of its own; without, the page around has one.
    """
    left, width, height = 14 + 7.0 * max(len(row.name) for row in rows), 680.0, 24.0
    bottom = 8 + height * len(rows)
    values = [value for row in rows for _, value in row.values]
    values += [end for row in rows for end in row.interval or ()]
    x_ticks = ticks(min(values), max(values))

    def across(x: float) -> float:
        share = (x - x_ticks[0]) / (x_ticks[-1] - x_ticks[0])
        return left + share * (width - left - 24)

    svg = svg_root(label, width, bottom + 44, "dots")
    if style:
        svg.set("xmlns", "http://www.w3.org/2000/svg")
        add(svg, "style", style)
        add(svg, "rect", cls="page", width="100%", height="100%")
    for x in x_ticks:
        add(svg, "line", cls="rule", x1=across(x), x2=across(x), y1=6, y2=bottom)
        add(svg, "text", show(x), cls="tick middle", x=across(x), y=bottom + 16)
    add(svg, "text", x_name, cls="tick middle", x=(left + width - 24) / 2, y=bottom + 36)
    if mark is not None:
        add(svg, "line", cls="mark", x1=across(mark), x2=across(mark), y1=6, y2=bottom)
    for number, row in enumerate(rows):
        y = 8 + height * (number + 0.5)
        add(svg, "text", row.name, cls="end", x=left - 10, y=y + 4)
        group = add(svg, "g", cls=row.kind)
        if row.interval is not None:
            low, high = map(across, row.interval)
            bar = add(group, "line", cls="range", x1=low, x2=high, y1=y, y2=y)
            add(bar, "title", f"{row.name}: {show(row.interval[0])} … {show(row.interval[1])}")
        for name, value in row.values:
            dot = add(group, "circle", cls="dot", cx=across(value), cy=y, r=4)
            add(dot, "title", f"{name}: {show(value)}")
        x, r = across(row.mean), 6
        path = f"M{x - r:.1f} {y}L{x:.1f} {y - r}L{x + r:.1f} {y}L{x:.1f} {y + r}Z"
        add(add(group, "path", cls="mean", d=path), "title", f"{row.name}: {show(row.mean)}")
    return as_markup(svg)


def ticks(low: float, high: float) -> list[float]:
    """Round values that begin at or below `low` and end at or above `high`, 4 to 7 of them."""
    if not high > low:
        low, high = low - 0.5, high + 0.5
    power = 10.0 ** math.floor(math.log10((high - low) / 4))
    rough = (high - low) / 4 / power
    step = power * next(nice for nice in (1, 2, 2.5, 5, 10) if rough <= nice * (1 + 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(step * tick, 12) for tick in range(first, last + 1)]


def _spread(items: Sequence[Item], most: int) -> Sequence[Item]:
    """At most so many of the items, evenly, beginning with the first."""
    return items[:: -(-len(items) // most)]


def _shortened(name: str) -> str:
    return name if len(name) <= _LABEL_CHARACTERS else f"{name[: _LABEL_CHARACTERS - 1]}…"


def _add_cell(
    svg: ElementTree.Element, content: Cell, x: float, y: float, cell: tuple[float, float]
) -> None:
    group = add(svg, "g")
    add(group, "title", content.title)
    strength = min(max(content.strength, 0.0), 1.0) * _STRONGEST
    for kind, opacity in (("empty", 1.0), (content.kind, strength)):
        box = add(group, "rect", cls=kind, x=x + 0.5, y=y + 0.5)
        box.set("width", f"{cell[0] - 1:.2f}")
        box.set("height", f"{cell[1] - 1:.2f}")
        box.set("fill-opacity", f"{opacity:.2f}")
    if content.text:
        middle, base = x + cell[0] / 2, y + cell[1] / 2 + 4
        add(group, "text", content.text, cls="tick middle", x=middle, y=base)
