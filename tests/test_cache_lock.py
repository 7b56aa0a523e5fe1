"""One writing process at a time; a killed one leaves no lock."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from cache import CacheError, open_cache, open_writer, repair_cache
from cache_making import IDENTITY, full_cache, full_disk, make_cache

ROOT = Path(__file__).parent.parent

HOLDER = """
    import os, sys, time
    from cache import open_writer
    from cache_making import IDENTITY

    writer = open_writer(sys.argv[1], identity=IDENTITY)
    if not os.fork():
        print(os.getppid(), os.getpid(), flush=True)
    time.sleep(60)
"""


def test_a_second_process_is_told_who_holds_the_lock(tmp_path: Path) -> None:
    path = full_cache(tmp_path / "c")
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    holder = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(HOLDER), str(path)],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    with holder:
        assert holder.stdout is not None
        pid, child = map(int, holder.stdout.readline().split())
        try:
            with pytest.raises(CacheError) as caught:
                open_writer(path, identity=IDENTITY)
            assert f"written by process {pid} on {socket.gethostname()} since 20" in str(
                caught.value
            )
            assert open_cache(path).coverage == 1  # reading needs no lock
            holder.kill()
            holder.wait()
            # A data worker that outlives its killed parent does not keep the lock.
            open_writer(path, identity=IDENTITY).close()
        finally:
            holder.kill()
            os.kill(child, signal.SIGKILL)
    assert not (path / ".lock").exists()


def test_the_lock_holds_from_the_making_on(tmp_path: Path) -> None:
    first = make_cache(tmp_path / "c")
    with first, pytest.raises(CacheError, match=f"process {os.getpid()} on"):
        open_writer(tmp_path / "c", identity=IDENTITY)
    writer = open_writer(tmp_path / "c", identity=IDENTITY)
    writer.close()
    writer.close()


def test_another_ones_lock_outlives_our_second_close(tmp_path: Path) -> None:
    first = make_cache(tmp_path / "c")
    first.close()
    with open_writer(tmp_path / "c", identity=IDENTITY):
        first.close()
        assert (tmp_path / "c" / ".lock").exists()
    assert not (tmp_path / "c" / ".lock").exists()


def test_a_full_disk_does_not_stop_who_only_makes_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = full_cache(tmp_path / "c")
    (path / "vit" / "pooled" / "c.1.0.0").unlink()
    monkeypatch.setattr(os, "pwrite", full_disk)  # that is how the lock says who holds it
    assert [dropped.chunk for dropped in repair_cache(path).dropped] == [1]
    with open_writer(path, identity=IDENTITY), pytest.raises(CacheError, match="another process"):
        open_writer(path, identity=IDENTITY)
