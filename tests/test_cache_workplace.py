"""Folders for metadata: gone afterwards, and swept where a process was killed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import tempfile
from pathlib import Path

import pytest

from cache.workplace import workplace


def use_and_die() -> None:
    """Runs in the other process."""
    with workplace() as folder:
        folder.mkdir()
        (folder / "zarr.json").write_text("{}")
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_what_a_killed_process_left_is_swept_and_what_is_in_use_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "dualkd-of-mine").mkdir()
    with workplace() as held:
        process = multiprocessing.get_context("fork").Process(target=use_and_die)
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert len(list(tmp_path.glob("dualkd-metadata-*"))) == 2
        with workplace() as folder:
            folder.mkdir()
            assert set(tmp_path.glob("dualkd-metadata-*")) == {held.parent, folder.parent}
    assert [path.name for path in tmp_path.iterdir()] == ["dualkd-of-mine"]
