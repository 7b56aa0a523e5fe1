"""Processes that end with the one that started them."""

from __future__ import annotations

import os
import threading
from multiprocessing import parent_process


def exit_with_parent() -> None:
    """Make this process exit as soon as its parent is gone, even if that one was killed.

    The initializer of every process pool: a pool's processes otherwise wait for work for ever.
    """
    parent = parent_process()
    if parent is None:
        return

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, name="exit-with-parent", daemon=True).start()
