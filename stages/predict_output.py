"""What `dualkd predict` prints: bars for people, lines of JSON for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import typer
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from stages.answers import JOINT, Answer, Failure, Ranked, best, segments
from stages.progress import PlainConsole
from stages.wording import percent, plural, printable

_WIDTH = 80  # columns where no terminal says how many there are
_WIDEST = 100  # longer bars say no more
_JOINED = " · "  # between the classes of several heads


def print_lines(
    answers: Iterable[Answer | Failure], classes: Mapping[str, list[str]], top: int
) -> int:
    """Print a line of JSON for each answer, and for each failure.

    Returns:
        How many failed.
    """
    failed = 0
    for answer in answers:
        if isinstance(answer, Failure):
            failed += 1
            record: dict[str, Any] = {"video": answer.video, "error": answer.reason}
            _tell(answer)
        else:
            record = {
                "video": answer.video,
                "start_sec": round(answer.start_sec, 6),
                "stop_sec": round(answer.stop_sec, 6),
                "answers": {
                    head: [_as_json(one) for one in of_head]
                    for head, of_head in best(answer.logits, classes, top).items()
                },
            }
        typer.echo(json.dumps(record))
    return failed


def _as_json(one: Ranked) -> dict[str, Any]:
    names = list(one.names.values())
    return {"class": names[0] if len(names) == 1 else one.names, "probability": one.probability}


def show(answers: Iterable[Answer | Failure], classes: Mapping[str, list[str]], top: int) -> int:
    """Print the best classes of each video with bars.

    Returns:
        How many videos failed.
    """
    console, failed = _console(), 0
    for answer in answers:
        if isinstance(answer, Failure):
            failed += 1
            _tell(answer)
            continue
        console.print(_heading(answer.video, f"{answer.stop_sec:.1f} s"))
        table = _grid(console)
        ranked = best(answer.logits, classes, top)
        for head, of_head in ranked.items():
            if len(ranked) > 1:
                product = " × ".join(classes) if head == JOINT and len(classes) > 1 else ""
                table.add_row(Text(head, "bold"), Text(product, "dim"), "")
            for one in of_head:
                table.add_row(*_cells(one.names, one.probability))
        console.print(table)
    return failed


def show_timeline(
    answers: Iterable[Answer | Failure], classes: Mapping[str, list[str]], every_sec: float
) -> int:
    """Print each stretch of a video over which the same class is on top, as soon as it ends.

    Returns:
        How many videos failed.
    """
    console, failed, video = _console(), 0, None
    names = sum(max(map(len, of_head)) + len(_JOINED) for of_head in classes.values())
    for segment in segments(answers, classes):
        if isinstance(segment, Failure):
            failed += 1
            _tell(segment)
            continue
        if segment.video != video:
            video = segment.video
            console.print(_heading(video, f"every {every_sec:g} s"))
        begin, end = (_clock(sec, every_sec) for sec in (segment.start_sec, segment.stop_sec))
        table = _grid(console, time=len("0:00:00.0 – 0:00:00.0"), names=names)
        table.add_row(f"{begin} – {end}", *_cells(segment.names, segment.probability))
        console.print(table)
    return failed


def _console() -> PlainConsole:
    console = PlainConsole(**({} if sys.stdout.isatty() else {"width": _WIDTH}))
    console.width = min(console.width, _WIDEST)
    return console


def _grid(console: PlainConsole, *, time: int = 0, names: int = 0) -> Table:
    """Columns: the time if any, the class, its bar, its share; indented by two."""
    table = Table.grid(padding=(0, 1, 0, 0), expand=True)
    rest = console.width - time
    if time:
        table.add_column(width=time, justify="right", no_wrap=True)
        table.add_column(width=min(names, rest // 2), overflow="fold")
    else:
        table.add_column(max_width=rest // 2, overflow="fold")
    table.add_column(ratio=1)
    table.add_column(width=len("100.0 %"), justify="right", no_wrap=True)
    return table


def _cells(names: Mapping[str, str], probability: float) -> Iterator[Any]:
    yield _JOINED.join(names.values())
    yield ProgressBar(total=1.0, completed=probability)
    yield percent(probability)


def _heading(video: str, note: str) -> Text:
    return Text.assemble((printable(video), "bold"), "  ", (note, "dim"))


def _clock(seconds: float, every_sec: float) -> str:
    """`0:12`, `1:02:03`; with tenths where steps are no whole seconds."""
    tenths = round(10 * seconds)
    whole, rest = divmod(tenths, 10)
    minutes, sec = divmod(whole, 60)
    hours, minute = divmod(minutes, 60)
    text = f"{hours}:{minute:02}:{sec:02}" if hours else f"{minute}:{sec:02}"
    return text if every_sec % 1 == 0 and not rest else f"{text}.{rest}"


def _tell(failure: Failure) -> None:
    typer.echo(f"error: {printable(failure.reason)}", err=True)


def tell_failed(failed: int) -> None:
    """Say at the end how many could not be read, where others scrolled by."""
    typer.echo(f"{plural(failed, 'video')} could not be read, or not to the end", err=True)
