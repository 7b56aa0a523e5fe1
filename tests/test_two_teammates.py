"""The story that docs/two-teammates.sh tells, with the miniature run in two folders."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cache import open_cache, verify_cache

SCRIPT = Path(__file__).parents[1] / "docs/two-teammates.sh"


@pytest.mark.slow
def test_the_story_is_true(extracted: Path, tmp_path: Path) -> None:
    for name in ("ada", "bob"):
        shutil.copytree(extracted, tmp_path / name)
        shutil.rmtree(tmp_path / name / "outputs/mini/cache")
    told = {
        "DATASET": "mini",
        "SHELF": str(tmp_path / "shelf"),
        "MORE_VIEWS": "3",
        "CLIPS": "pytorchvideo/x3d_tiny",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    done = subprocess.run(
        ["/bin/sh", SCRIPT],
        cwd=tmp_path,
        env=os.environ | told,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("# done\n")
    said = " ".join(done.stderr.split())
    assert "outputs/mini/cache is partial: " in said
    ada, bob = (tmp_path / name / "outputs/mini/cache" for name in ("ada", "bob"))
    one, other = open_cache(ada), open_cache(bob)
    assert one.num_views == other.num_views == 3
    assert "clip/pytorchvideo/x3d_tiny" in one.fields
    for name in one.fields:
        np.testing.assert_array_equal(one.status_of(name), other.status_of(name))
        rows = np.argwhere(one.status_of(name) == 1)
        values = [cache.read(*rows.T, [name])[name] for cache in (one, other)]
        np.testing.assert_array_equal(*values)
    assert verify_cache(ada).ok
    assert verify_cache(bob).ok
