"""Processes that leave Ctrl-C to the one that started them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

from pipeline.processes import ProcessPool, ignoring_interrupts


def blocked_in_a_process() -> bool:
    """Whether a process that is started now ignores Ctrl-C."""
    code = "import signal as s; print(s.SIGINT in s.pthread_sigmask(s.SIG_BLOCK, []))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return shown.stdout.strip() == "True"


def test_only_processes_that_are_started_in_the_block_ignore_interrupts() -> None:
    with ignoring_interrupts():
        assert blocked_in_a_process()
        with ignoring_interrupts():
            assert blocked_in_a_process()
        assert blocked_in_a_process()
    assert not blocked_in_a_process()


def test_a_pool_goes_on_after_an_interrupt() -> None:
    with ProcessPool(1) as pool:
        process = pool.submit(os.getpid).result()
        os.kill(process, signal.SIGINT)
        assert pool.submit(os.getpid).result() == process
