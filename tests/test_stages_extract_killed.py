"""`extract` killed at random moments: nothing that was committed is lost, the end is the same."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cache_making import contents
from chain_making import write_config

KILLS = 50


@pytest.mark.slow
def test_fifty_kills_lose_at_most_the_chunks_in_flight(extracted: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mini"
    shutil.copytree(extracted, folder, ignore=shutil.ignore_patterns("cache"))
    write_config(  # little to compute: what counts is how often files are written
        folder,
        ("views: {count: 2", "views: {count: 1"),
        ("chunk_samples: 5", "chunk_samples: 2"),
        (
            "grid: [4, 2, 2], ridge: 1.0e-3, samples: 14",
            "grid: [4, 4, 4], ridge: 1.0e-3, samples: 3",
        ),
    )
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("killing.py")), str(KILLS), "0"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=600,
        check=True,
    )
    runs = json.loads(done.stdout)["runs"]
    assert sum(run["signal"] == signal.SIGKILL for run in runs) >= KILLS
    for run in runs:
        assert set(run["before"]) <= set(run["after"]), run
        made = len(run["after"]) - len(run["before"])
        # One is being written, one waits for that, one is being computed.
        assert made <= len(run["begun"]) <= made + 3, run
    undisturbed = contents(folder / "kills" / "undisturbed")
    for name in {run["cache"] for run in runs}:
        assert contents(folder / "kills" / name) == undisturbed
    leftovers = [path.name for path in (folder / "kills").iterdir() if path.name.startswith(".")]
    assert leftovers == []
