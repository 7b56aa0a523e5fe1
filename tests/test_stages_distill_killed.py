"""A student's training that is killed, wherever, ends with the bits of the undisturbed one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from chain_making import write_config
from pipeline.config import Run

KILLS = 8
CHANGES = (
    ("temperature: 2.0", "temperature: 2.0\n  validation: test"),
    (
        "train: *recipe\n  weights",
        "train: {<<: *recipe, epochs: 4, ema_decay: 0.7, accumulate: 2, keep: best, precise_bn: 1}"
        "\n  weights",
    ),
)


@pytest.mark.slow
def test_killed_trainings_end_as_the_undisturbed_one(mini: Run) -> None:
    write_config(Path.cwd(), *CHANGES)
    tests = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, tests / "killing_training.py", str(KILLS), "1"],
        env={**os.environ, "PYTHONPATH": f"{tests}{os.pathsep}{tests.parent}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert len(told["kills"]) >= KILLS
    ends = told["ends"]
    undisturbed = ends.pop("undisturbed")
    assert len(json.loads(undisturbed["log"])) == 4
    for name, left in ends.items():
        assert left == undisturbed, name
