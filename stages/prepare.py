"""Stage `prepare`: a folder on disk, or a generator → the samples table."""

from __future__ import annotations

import os
from pathlib import Path

from pipeline.config import Run
from pipeline.datasets import figures
from pipeline.samples import Sample, Samples, build_samples, write_samples
from stages.progress import track


def prepare(run: Run) -> Samples:
    """Render the videos that are not there yet and write the samples table."""
    rows: list[Sample] = []
    for split, count in run.prepare.splits.items():
        rows += render_split(
            Path(run.prepare.root), seed=run.prepare.seed, split=split, count=count
        )
    samples = build_samples(run.dataset, {"action": list(figures.CLASSES)}, rows)
    write_samples(samples, run.samples_path)
    return samples


def render_split(root: Path, *, seed: int, split: str, count: int) -> list[Sample]:
    """Render one split of the figures with all cores, showing progress."""
    rendered = figures.render(
        root, seed=seed, split=split, count=count, workers=os.cpu_count() or 1
    )
    return list(track(rendered, total=count, what=f"rendering {split}", unit="videos"))
