"""Networks scored on the single centre view of labelled videos: one decode serves them all."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from pipeline.clips import ClipDataset, Request, central_view, in_batches, iterate
from pipeline.metrics import joint_top_k
from pipeline.models import VideoModel
from pipeline.samples import Samples
from pipeline.training import predict
from pipeline.views import ClipSpec
from stages.progress import console, track


class ScoringError(ValueError):
    """Nothing can be scored; the message says why."""


class Scored:
    """Logits of every model for every readable sample.

    Attributes:
        rows: (N,) which samples could be read.
        labels: by head (N,).
        logits: by role, then head (N, K).
        seconds: by role, time in the forward passes.
        errors: row → why its video could not be read.
    """

    def __init__(self, roles: list[str]) -> None:
        self.rows: NDArray[np.int64] = np.zeros(0, np.int64)
        self.labels: dict[str, NDArray[np.int64]] = {}
        self.logits: dict[str, dict[str, NDArray[np.float32]]] = {}
        self.seconds = dict.fromkeys(roles, 0.0)
        self.errors: dict[int, str] = {}

    def accuracies(self, role: str) -> dict[str, Any]:
        """Of a model, `top1` and `top5`; with several heads these are of all heads together.

        Those of each head then stand below `heads`.
        """
        logits, labels = self.logits[role], self.labels
        figures: dict[str, Any] = {f"top{k}": joint_top_k(logits, labels, k) for k in (1, 5)}
        if len(labels) > 1:
            figures["heads"] = {
                head: {
                    f"top{k}": joint_top_k({head: logits[head]}, {head: labels[head]}, k)
                    for k in (1, 5)
                }
                for head in labels
            }
        return figures


def labelled(samples: Samples) -> Samples:
    """The samples that have a label of every head.

    Raises:
        ScoringError: there are none.
    """
    columns = [samples.table[f"label_{head}"] for head in samples.heads]
    complete = np.flatnonzero(
        np.all([pc.is_valid(column).to_numpy() for column in columns], axis=0)
    )
    if not len(complete):
        splits = ", ".join(samples.splits())
        raise ScoringError(f"not one of the {len(samples)} samples of {splits} has labels")
    return samples if len(complete) == len(samples) else samples.take(complete)


def score(
    models: Mapping[str, VideoModel],
    root: Path,
    samples: Samples,
    workers: int,
    batch_size: int,
    *,
    what: str = "evaluating",
) -> Scored:
    """Run models over the centre views of labelled samples, each cut as its makers evaluated it.

    Args:
        models: by role.
        root: the dataset's root.
        samples: with labels of all heads, see `labelled`.
        workers: processes that decode.
        batch_size: clips in one forward pass.
        what: what the progress bar says.

    Raises:
        ScoringError: not one video can be read.
    """
    scored = Scored(list(models))
    specs = list(dict.fromkeys(model.clip for model in models.values()))
    for model in models.values():  # the first pass of a process sets things up: not timed
        predict(model, _blank(model.clip).to(_device(model)))
    requests: list[Request] = [(row, central_view) for row in range(len(samples))]
    batches = in_batches(requests, batch_size)
    rows: list[int] = []
    logits: dict[str, dict[str, list[NDArray[np.float32]]]] = {
        role: {head: [] for head in model.heads} for role, model in models.items()
    }
    dataset = ClipDataset(root, samples, specs, test_crop=True)
    reads = iterate(dataset, batches, workers)
    for batch in track(reads, total=len(batches), what=what, unit="batches"):
        scored.errors |= {read.row: read.error for read in batch if read.error is not None}
        good = [read for read in batch if read.clips is not None]
        if not good:
            continue
        rows += [read.row for read in good]
        for role, model in models.items():
            which = specs.index(model.clip)
            clips = np.concatenate([read.clips.clips[which] for read in good if read.clips])
            started = time.perf_counter()
            answer = predict(model, torch.from_numpy(clips).to(_device(model)))
            for head, of_head in answer.items():
                logits[role][head].append(of_head.float().cpu().numpy())
            scored.seconds[role] += time.perf_counter() - started
    for row, error in scored.errors.items():
        console.print(f"left out: {samples.row(row).sample_id}: {error}")
    if not rows:
        first = next(iter(scored.errors.values()), "the split is empty")
        raise ScoringError(f"not one of {len(samples)} videos can be read; the first: {first}")
    scored.rows = np.array(rows)
    scored.labels = {
        head: samples.table[f"label_{head}"].to_numpy()[scored.rows].astype(np.int64)
        for head in samples.heads
    }
    scored.logits = {
        role: {head: np.concatenate(parts) for head, parts in of_role.items()}
        for role, of_role in logits.items()
    }
    return scored


def _blank(clip: ClipSpec) -> torch.Tensor:
    return torch.zeros(1, clip.frames, clip.size, clip.size, 3, dtype=torch.uint8)


def _device(model: VideoModel) -> torch.device:
    return next(model.parameters()).device
