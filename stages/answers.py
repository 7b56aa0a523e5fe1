"""What `dualkd predict` says of a video: its best classes, and where it stays the same."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

JOINT = "action"  # what all heads say together


@dataclass(frozen=True)
class Answer:
    """What a student answers to a video, or to a step of it.

    Attributes:
        video: its path.
        start_sec: begin, seconds since the first frame.
        stop_sec: end.
        logits: by head (K,); of several views, see `pipeline.metrics.mean_of_views`.
    """

    video: str
    start_sec: float
    stop_sec: float
    logits: dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Failure:
    """A video that could not be read, or not to its end.

    Attributes:
        video: its path.
        reason: a message that names it.
    """

    video: str
    reason: str


class Ranked(NamedTuple):
    """A class, or one of each head, with its probability.

    Attributes:
        names: by head.
        probability: of a class by the softmax of its head; of several their product.
    """

    names: dict[str, str]
    probability: float


def best(
    logits: Mapping[str, NDArray[np.float32]], classes: Mapping[str, list[str]], top: int
) -> dict[str, list[Ranked]]:
    """The best classes of each head and, of several heads, under `JOINT`, of all together.

    Args:
        logits: by head (K,).
        classes: names by head.
        top: how many at most.

    Returns:
        By head, falling.
    """
    ranked = {}
    for head, of_head in logits.items():
        exact = np.exp(of_head.astype(np.float64) - of_head.max())
        shares = exact / exact.sum()
        order = np.argsort(-shares, kind="stable")[:top]
        ranked[head] = [Ranked({head: classes[head][i]}, float(shares[i])) for i in order]
    if len(ranked) > 1:  # the best of all together are made of the best of each
        together = [
            Ranked(
                {head: name for one in parts for head, name in one.names.items()},
                float(np.prod([one.probability for one in parts])),
            )
            for parts in itertools.product(*ranked.values())
        ]
        ranked[JOINT] = sorted(together, key=lambda one: -one.probability)[:top]
    return ranked


@dataclass(frozen=True)
class Segment:
    """Steps of a video, one behind the other, with the same answer.

    Attributes:
        video: its path.
        start_sec: begin of the first.
        stop_sec: end of the last.
        names: of the best class, by head.
        probability: its mean over the steps.
    """

    video: str
    start_sec: float
    stop_sec: float
    names: dict[str, str]
    probability: float

    def goes_on(self, video: str, top: Ranked) -> bool:
        """Whether a next step belongs to it."""
        return self.video == video and self.names == top.names


def segments(
    answers: Iterable[Answer | Failure], classes: Mapping[str, list[str]]
) -> Iterator[Segment | Failure]:
    """Merge steps for as long as the same class stays on top, of several heads the same ones.

    Yields:
        The segments, each as soon as another begins, and the failures where they happened.
    """
    current: Segment | None = None
    steps = 0
    for answer in answers:
        top = None if isinstance(answer, Failure) else _top(answer, classes)
        if current is not None and (top is None or not current.goes_on(answer.video, top)):
            yield current
            current, steps = None, 0
        if isinstance(answer, Failure):
            yield answer
        elif top is not None:
            steps += 1
            current = _longer(current, answer, top, steps)
    if current is not None:
        yield current


def _longer(segment: Segment | None, answer: Answer, top: Ranked, steps: int) -> Segment:
    """A segment with a step more, or one that begins with it."""
    if segment is None:
        return Segment(answer.video, answer.start_sec, answer.stop_sec, top.names, top.probability)
    mean = segment.probability + (top.probability - segment.probability) / steps
    return replace(segment, stop_sec=answer.stop_sec, probability=mean)


def _top(answer: Answer, classes: Mapping[str, list[str]]) -> Ranked:
    ranked = best(answer.logits, classes, 1)
    return ranked[JOINT if len(answer.logits) > 1 else next(iter(ranked))][0]
