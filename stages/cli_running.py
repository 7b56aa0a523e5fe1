"""How a command runs and ends: what a user can mend is one message, Ctrl-C is one line."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from types import FrameType

import typer

from stages.wording import printable

_INTERRUPTED = 130  # the exit code after Ctrl-C
_ORDERLY_SEC = 5.0  # for the end after it
_SMALLER = (
    "A smaller --batch-size takes less memory; in a training more pieces of a batch do "
    "(`accumulate` in its recipe). What was finished is kept, and the same command goes on"
)
_KEPT = "interrupted: what was finished is kept, and the same command makes the rest"


def run_command(command: typer.Typer) -> None:
    """Run a command; what a user can mend is one message, everything else a traceback."""
    signal.signal(signal.SIGINT, _interrupt)
    try:
        command()
    except SystemExit as stop:
        if stop.code == _INTERRUPTED:  # typer makes it of KeyboardInterrupt
            typer.echo(_KEPT, err=True)
        raise
    except Exception as error:
        if type(error).__name__ == "OutOfMemoryError":  # torch's, which need not be imported here
            message = f"{str(error).splitlines()[0]}. {_SMALLER}"
        elif _explains_itself(error):
            message = str(error)
        else:
            raise
        typer.echo(f"error: {printable(message)}", err=True)
        sys.exit(1)


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    """End this command in order on Ctrl-C; at once on another, or when that takes long."""
    signal.signal(signal.SIGINT, lambda _signal, _frame: _end_at_once())
    deadline = threading.Timer(_ORDERLY_SEC, _end_at_once)
    deadline.daemon = True
    deadline.start()
    logging.disable()  # of what is cut off on the way
    raise KeyboardInterrupt


def _end_at_once() -> None:
    """End without waiting: other processes end with this one, the next command tidies up."""
    below_bar = "\n\x1b[?25h" if sys.stderr.isatty() else ""  # which hides the cursor
    typer.echo(f"{below_bar}{_KEPT}", err=True)
    os._exit(_INTERRUPTED)


def _explains_itself(error: Exception) -> bool:
    """Whether an error is one of ours, whose message says what to do."""
    return type(error).__module__.split(".")[0] in ("cache", "pipeline", "stages") or isinstance(
        error, OSError
    )
