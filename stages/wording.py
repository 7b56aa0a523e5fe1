"""Numbers for people: 12.3 %, +1.2 points, 4.9 M, 38 kB, 7 min 12 s; text that only reads."""

from __future__ import annotations

import unicodedata

_SPACE = "\u202f"  # narrow and no-break: a number and its unit stay on one line
_NOTHING = "–"


def percent(share: float | None, digits: int = 1) -> str:
    """A share of 1, as `83.5 %`; a dash where there is none."""
    return _NOTHING if share is None else f"{100 * share:.{digits}f}{_SPACE}%"


def short_percent(share: float) -> str:
    """A share with three digits that count, as `0.241 %` or `11.4 %`."""
    return f"{100 * share:.3g}{_SPACE}%"


def points(difference: float | None) -> str:
    """A difference of two shares in percentage points, with its sign: `+11.3`."""
    if difference is None:
        return _NOTHING
    text = f"{100 * difference:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", "−")


def count(number: float) -> str:
    """A whole number with its thousands apart: `2,400`."""
    return f"{number:,.0f}"


def plural(number: int, one: str, many: str = "") -> str:
    """A counted thing: `1 video`, `2,400 videos`."""
    return f"{count(number)} {one if number == 1 else many or one + 's'}"


def scaled(value: float, unit: str = "") -> str:
    """Three digits that count and a prefix: `4.9 M`, `38 kB`."""
    prefixes = ("", "k", "M", "G", "T", "P")
    step = 0
    while abs(value) >= 999.5 and step < len(prefixes) - 1:
        value, step = value / 1000, step + 1
    suffix = prefixes[step] + unit
    return f"{value:.3g}{_SPACE}{suffix}" if suffix else f"{value:.3g}"


def size(number: float) -> str:
    """Bytes: `38 kB`, decimal prefixes."""
    return scaled(number, "B")


def figure(value: float) -> str:
    """A loss, or another number without a unit: three digits that count."""
    return f"{value:.3g}".replace("-", "−")


def duration(seconds: float) -> str:
    """A time: `31.2 ms`, `4.1 s`, `7 min 12 s`, `3 h 20 min`."""
    if seconds < 0.9995:
        return f"{1000 * seconds:.3g}{_SPACE}ms"
    if seconds < 59.95:
        return f"{seconds:.3g}{_SPACE}s"
    if seconds < 3599.5:
        minutes, rest = divmod(round(seconds), 60)
        return f"{minutes}{_SPACE}min {rest}{_SPACE}s" if rest else f"{minutes}{_SPACE}min"
    hours, minutes = divmod(round(seconds / 60), 60)
    if hours >= 100 or not minutes:
        return f"{count(seconds / 3600)}{_SPACE}h"
    return f"{hours}{_SPACE}h {minutes}{_SPACE}min"


def printable(text: str) -> str:
    """Text from elsewhere with its control characters spelled out: it cannot steer a terminal."""
    return "".join(
        repr(one)[1:-1] if unicodedata.category(one)[0] == "C" and one != "\n" else one
        for one in text
    )
