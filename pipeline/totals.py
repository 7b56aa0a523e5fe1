"""What an epoch did so far: sums over clips, which ranks and restarts can add up."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pipeline.learner import Answer
from pipeline.losses import confidence
from pipeline.objective import NO_LABEL, Batch
from pipeline.ranks import ALONE, Ranks

CONFIDENCE_BINS = 5
"""Of each teacher's confidence in [0, 1], even ones; the last holds 1 too."""


class Outcome(NamedTuple):
    """One forward and backward pass.

    Attributes:
        batch: what it saw.
        terms: of the loss, by name, and `loss`; each ().
        answer: the learner's outputs.
        weights: of the teachers (B, 2), or None.
    """

    batch: Batch
    terms: dict[str, Tensor]
    answer: Answer
    weights: Tensor | None


@dataclass
class Totals:
    """Sums and counts by name, () float64; they stay on the device until they are asked for.

    Attributes:
        classes: of the first head.
        sums: what is added up over clips.
        counts: over how many.
        by_class: sums and counts (2, classes) of the ViT's weight, by the label of the first head.
        by_confidence: the same (2, bins · bins), by the ViT's bin of confidence, then the CNN's.
        seconds: that it took, in this process.
        waited: seconds of them in which no batch was there.
    """

    classes: int
    sums: dict[str, Tensor] = field(default_factory=dict)
    counts: dict[str, Tensor] = field(default_factory=dict)
    by_class: Tensor | None = None
    by_confidence: Tensor | None = None
    seconds: float = 0.0
    waited: float = 0.0

    @torch.no_grad()
    def add(self, outcome: Outcome) -> None:
        """Count one pass."""
        batch, logits = outcome.batch, outcome.answer.student.logits
        size = torch.full((), len(batch.names), dtype=torch.float64, device=batch.clips.device)
        for name, term in outcome.terms.items():
            self._add(name, term.double() * size, size)
        all_right = torch.ones(len(batch.names), dtype=torch.bool, device=size.device)
        for head, labels in batch.labels.items():
            main = labels if batch.mix is None else batch.mix.main(labels)
            right = logits[head].argmax(1) == main
            all_right &= right
            self._add(f"accuracy/{head}", right.sum(), (main != NO_LABEL).sum())
        if len(batch.labels) > 1:  # of all heads together, over the samples that are seen
            self._add("accuracy/action", all_right.sum(), size)
        if batch.teachers is not None:
            pair = {"vit": batch.teachers.vit_logits, "cnn": batch.teachers.cnn_logits}
            for teacher, of_teacher in pair.items():
                for head, theirs in of_teacher.items():
                    if theirs is not None:
                        same = (logits[head].argmax(1) == theirs.argmax(1)).sum()
                        self._add(f"agreement_{teacher}/{head}", same, size)
        if outcome.weights is not None:
            self._add_weights(outcome.weights[:, 0].double(), batch, size)

    def _add_weights(self, vit: Tensor, batch: Batch, size: Tensor) -> None:
        self._add("vit_weight", vit.sum(), size)
        self._add("vit_weight_squared", vit.square().sum(), size)
        self._add("vit_leads", (vit > 0.5).sum(), size)
        self._add("cnn_leads", (vit < 0.5).sum(), size)
        head, labels = next(iter(batch.labels.items()))
        there = (labels != NO_LABEL).double()
        self.by_class = _added(self.by_class, self.classes, labels.clamp(min=0), vit, there)
        if batch.teachers is None:
            return
        pair = batch.teachers.vit_logits[head], batch.teachers.cnn_logits[head]
        if pair[0] is not None and pair[1] is not None:
            of_vit, of_cnn = (
                _bin(confidence(logits=logits)) for logits in pair if logits is not None
            )
            places = of_vit * CONFIDENCE_BINS + of_cnn
            every = torch.ones_like(vit)
            self.by_confidence = _added(self.by_confidence, CONFIDENCE_BINS**2, places, vit, every)

    def _add(self, name: str, value: Tensor, count: Tensor) -> None:
        value, count = value.double(), count.double()
        self.sums[name] = self.sums[name] + value if name in self.sums else value
        self.counts[name] = self.counts[name] + count if name in self.counts else count

    def means(self, ranks: Ranks = ALONE) -> dict[str, float]:
        """Means over the clips of all ranks, which must all call it, and what follows from them."""
        if not self.sums:
            return {}
        names = list(self.sums)
        pair = self.sums, self.counts
        both = torch.stack([torch.stack([each[name] for name in names]) for each in pair])
        sums, counts = ranks.total(both).tolist()
        means = {
            name: value / max(count, 1.0)
            for name, value, count in zip(names, sums, counts, strict=True)
        }
        if "vit_weight_squared" in means:
            variance = means.pop("vit_weight_squared") - means["vit_weight"] ** 2
            means["vit_weight_spread"] = math.sqrt(max(variance, 0.0))
        if "sdd" in means:
            means["residual_r2"] = 1 - means["sdd"]  # of a target of mean square 1
        return means

    def vit_weight_by_class(self, ranks: Ranks = ALONE) -> list[float]:
        """Means by class; NaN for a class that was not seen. Empty without weights."""
        if self.by_class is None:
            return []
        sums, counts = ranks.total(self.by_class.clone())
        return [float(mean) for mean in sums / counts]

    def vit_weight_by_confidence(self, ranks: Ranks = ALONE) -> list[list[float]]:
        """Mean and number of clips by pair of bins; NaN of none. Empty without weights."""
        if self.by_confidence is None:
            return []
        sums, counts = ranks.total(self.by_confidence.clone())
        return torch.stack([sums / counts, counts], dim=1).tolist()

    def state(self) -> dict[str, Any]:
        """Plain values, for a checkpoint."""
        return {
            "sums": {name: float(value) for name, value in self.sums.items()},
            "counts": {name: float(value) for name, value in self.counts.items()},
            "by_class": None if self.by_class is None else self.by_class.tolist(),
            "by_confidence": None if self.by_confidence is None else self.by_confidence.tolist(),
            "seconds": self.seconds,
            "waited": self.waited,
        }

    @classmethod
    def from_state(cls, classes: int, state: dict[str, Any], device: torch.device) -> Totals:
        """Those of a checkpoint."""

        def placed(values: Any) -> Tensor:
            return torch.tensor(values, dtype=torch.float64, device=device)

        def table(name: str) -> Tensor | None:
            return None if state[name] is None else placed(state[name])

        return cls(
            classes,
            {name: placed(value) for name, value in state["sums"].items()},
            {name: placed(value) for name, value in state["counts"].items()},
            table("by_class"),
            table("by_confidence"),
            state["seconds"],
            state["waited"],
        )


def _bin(confidences: Tensor) -> Tensor:
    """The bin of each confidence, int64."""
    return (confidences * CONFIDENCE_BINS).long().clamp(max=CONFIDENCE_BINS - 1)


def _added(
    table: Tensor | None, size: int, places: Tensor, values: Tensor, there: Tensor
) -> Tensor:
    """Sums and counts (2, size) with the values added at their places; `there` is 1, or 0."""
    if table is None:
        table = torch.zeros(2, size, dtype=torch.float64, device=values.device)
    table[0].index_add_(0, places, values * there)
    table[1].index_add_(0, places, there)
    return table
