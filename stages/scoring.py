"""Networks scored on the same views of labelled videos: one decode serves them all."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.clips import ClipDataset, Request, in_batches, iterate
from pipeline.config import Precision
from pipeline.metrics import answers, label_ranks, mean_of_views, top_k
from pipeline.models import VideoModel
from pipeline.objective import NO_LABEL
from pipeline.protocols import CENTRE, Protocol, ProtocolViews
from pipeline.samples import Samples
from pipeline.training import predict
from pipeline.views import ClipSpec
from stages.progress import console, track

Heads = tuple[str, ...]  # that are taken as one: right where all of them are
_TOLD = 5  # samples that cannot be read, with the reason


class ScoringError(ValueError):
    """Nothing can be scored; the message says why."""


class Scored:
    """Logits of every model for every readable sample.

    Attributes:
        rows: (N,) which samples could be read.
        labels: by head (N,).
        logits: by role, then head (N, K); of several views, see `pipeline.metrics.mean_of_views`.
        clips: how many clips each model answered, over all samples and views.
        seconds: by role, time in the forward passes.
        errors: row → why its video could not be read.
    """

    def __init__(self, roles: list[str]) -> None:
        self.rows: NDArray[np.int64] = np.zeros(0, np.int64)
        self.labels: dict[str, NDArray[np.int64]] = {}
        self.logits: dict[str, dict[str, NDArray[np.float32]]] = {}
        self.clips = 0
        self.seconds = dict.fromkeys(roles, 0.0)
        self.errors: dict[int, str] = {}
        self._ranks: dict[str, dict[Heads, NDArray[np.int64]]] = {}

    def accuracies(self, role: str) -> dict[str, Any]:
        """Of a model, `top1` and `top5`; with several heads these are of all heads together.

        Those of each head then stand below `heads`.

        Raises:
            ValueError: there are no samples.
        """
        found = {
            heads: {f"top{k}": top_k(ranks, k) for k in (1, 5)}
            for heads, ranks in self.label_ranks(role).items()
        }
        figures: dict[str, Any] = dict(found[tuple(self.labels)])
        if len(self.labels) > 1:
            figures["heads"] = {head: found[head,] for head in self.labels}
        return figures

    def label_ranks(self, role: str) -> dict[Heads, NDArray[np.int64]]:
        """Of a model, how many answers are ahead of the label (N,), see `pipeline.metrics`.

        By heads that are taken together: all of them, then, of several, each.
        """
        if role not in self._ranks:
            logits = self.logits[role]
            self._ranks[role] = {
                heads: label_ranks(
                    {head: logits[head] for head in heads},
                    {head: self.labels[head] for head in heads},
                )
                for heads in together(list(self.labels))
            }
        return self._ranks[role]

    def answers(self, role: str) -> dict[str, NDArray[np.int64]]:
        """Of a model, the class that it answers, by head (N,); see `pipeline.metrics.answers`."""
        return {head: answers(logits) for head, logits in self.logits[role].items()}


def together(heads: Sequence[str]) -> list[Heads]:
    """Which heads are scored as one: all of them, then, of several, each."""
    return [tuple(heads), *((head,) for head in heads if len(heads) > 1)]


def labelled(samples: Samples) -> Samples:
    """The samples that have a label of every head.

    Raises:
        ScoringError: there are none.
    """
    by_head = samples.labels(NO_LABEL).values()
    complete = np.flatnonzero(np.all([labels != NO_LABEL for labels in by_head], axis=0))
    if not len(complete):
        splits = ", ".join(samples.splits())
        raise ScoringError(f"not one of the {len(samples)} samples of {splits} has labels")
    return samples if len(complete) == len(samples) else samples.take(complete)


def score(
    models: Mapping[str, VideoModel],
    root: Path,
    samples: Samples,
    decoders: int,
    batch_size: int,
    *,
    protocol: Protocol = CENTRE,
    precision: Precision = "fp32",
    max_failed_share: float = 1.0,
    what: str = "evaluating",
) -> Scored:
    """Run models over the same views of labelled samples, each cut as its makers evaluated it.

    Memory holds the clips of `batch_size` views, or of one sample where it has more, and as many
    again per worker.

    Args:
        models: by role.
        root: the dataset's root.
        samples: with labels of all heads, see `labelled`.
        decoders: processes that decode.
        batch_size: clips in one forward pass.
        protocol: which views; by default the single one in the centre.
        precision: what the networks compute in.
        max_failed_share: of the samples that cannot be read.
        what: what the progress bar says.

    Raises:
        ScoringError: not one video can be read, or more than allowed cannot.
    """
    scored = Scored(list(models))
    specs = list(dict.fromkeys(model.clip for model in models.values()))
    for model in models.values():  # the first pass of a process sets things up: not timed
        predict(model, _blank(model.clip).to(_device(model)))
    views = ProtocolViews(protocol, max(spec.span_sec for spec in specs))
    dataset = ClipDataset(root, samples, specs, test_crop=protocol.test_crop)
    requests: list[Request] = [(row, views) for row in range(len(samples))]
    batches = in_batches(dataset.by_video(requests), max(1, batch_size // protocol.views))
    rows: list[int] = []
    logits: dict[str, dict[str, list[NDArray[np.float32]]]] = {
        role: {head: [] for head in model.heads} for role, model in models.items()
    }
    reads = iterate(dataset, batches, decoders, ahead=4 if protocol.views == 1 else 1)
    for batch in track(reads, total=len(batches), what=what, unit="batches"):
        scored.errors |= {read.row: read.error for read in batch if read.error is not None}
        good = [read for read in batch if read.clips is not None]
        if not good:
            continue
        rows += [read.row for read in good]
        counts = [len(read.clips.views) for read in good if read.clips]
        scored.clips += sum(counts)
        for role, model in models.items():
            which = specs.index(model.clip)
            clips = np.concatenate([read.clips.clips[which] for read in good if read.clips])
            started = time.perf_counter()
            answer = _answers(model, clips, batch_size, precision)
            scored.seconds[role] += time.perf_counter() - started
            for head, of_head in answer.items():
                logits[role][head].append(_by_sample(of_head, counts, protocol))
    _tell_unreadable(samples, scored.errors, max_failed_share)
    scored.rows = np.array(rows)
    by_head = samples.labels(NO_LABEL)
    scored.labels = {head: labels[scored.rows] for head, labels in by_head.items()}
    scored.logits = {
        role: {head: np.concatenate(parts) for head, parts in of_role.items()}
        for role, of_role in logits.items()
    }
    return scored


def _tell_unreadable(samples: Samples, errors: Mapping[int, str], limit: float) -> None:
    """Say what was left out.

    Raises:
        ScoringError: it is everything, or more than allowed.
    """
    for row, error in islice(errors.items(), _TOLD):
        console.print(f"left out: {samples.row(row).sample_id}: {error}")
    if errors:
        console.print(f"{len(errors)} of {len(samples)} samples cannot be read, and are left out")
    first = next(iter(errors.values()), "the split is empty")
    if len(errors) == len(samples):
        raise ScoringError(f"not one of {len(samples)} videos can be read; the first: {first}")
    if len(errors) > limit * len(samples):
        raise ScoringError(
            f"{len(errors)} of {len(samples)} samples cannot be read, more than "
            f"extract.max_failed_share {limit:.0%} allows: a score of the rest would mislead. The "
            f"first: {first}"
        )


def _answers(
    model: VideoModel, clips: NDArray[np.uint8], batch_size: int, precision: Precision
) -> dict[str, NDArray[np.float32]]:
    """Logits by head (B, K) of clips (B, T, H, W, 3), `batch_size` at a time."""
    parts: dict[str, list[NDArray[np.float32]]] = {head: [] for head in model.heads}
    for start in range(0, len(clips), batch_size):
        part = torch.from_numpy(clips[start : start + batch_size]).to(_device(model))
        for head, logits in predict(model, part, precision).items():
            parts[head].append(logits.float().cpu().numpy())
    return {head: np.concatenate(of_head) for head, of_head in parts.items()}


def _by_sample(
    logits: NDArray[np.float32], views: Sequence[int], protocol: Protocol
) -> NDArray[np.float32]:
    """The rows of a batch's views (B, K) as one row per sample; a single view stays as it is."""
    if protocol.views == 1:
        return logits
    ends = np.cumsum(views)[:-1]
    return np.stack([mean_of_views(of_sample) for of_sample in np.split(logits, ends)])


def _blank(clip: ClipSpec) -> torch.Tensor:
    return torch.zeros(1, clip.frames, clip.size, clip.size, 3, dtype=torch.uint8)


def _device(model: VideoModel) -> torch.device:
    return next(model.parameters()).device
