"""Commands in messages, spelt so that a shell takes them as they stand."""

from __future__ import annotations

import shlex


def command(*words: object) -> str:
    """A command of which each word is one, whatever it holds."""
    return shlex.join(map(str, words))
