"""The gate before a long extraction: do the teachers know this dataset at all?

Wrong class order, wrong preprocessing or probabilities for logits cost a whole extraction, and
leave a cache that teaches nonsense without an error.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.config import Run
from pipeline.datasets.k400 import class_names
from pipeline.models import VideoModel, model_entry
from pipeline.published import published_classes
from pipeline.samples import Samples
from pipeline.weights import PUBLISHED, recorded_facts, weights_digest
from stages.progress import console
from stages.scoring import Scored, labelled, score

_LEAST = 50  # videos; fewer say too little
_PART = 10  # the gate takes at most this part of the run: one clip in so many
_MARGIN = 0.1  # of top-1: what one central view may lose against a published several
_SIGMAS = 3.0


class GateError(ValueError):
    """A teacher does not know the dataset; the message gives figures, causes and the way out."""


@dataclass(frozen=True)
class Expected:
    """What a teacher should reach: a share of 1, and in words where it is from."""

    top1: float
    source: str


def check_teachers(
    run: Run,
    table: Samples,
    models: Mapping[str, VideoModel],
    *,
    rows: int,
    decoders: int,
    batch_size: int,
) -> dict[str, Any]:
    """Score teachers before they are run over a dataset, and refuse those far below what is known.

    What `teach` measured of the very same weights counts; others are scored on labelled videos of
    the evaluation split (of those to be extracted where it has none), as many as the config says,
    and at most a tenth of the run. A short run is not held up: nothing is scored then.

    With fewer than 50 videos accuracy says too little, and is only shown.

    Args:
        run: the config.
        table: the samples table.
        models: the teachers, by name.
        rows: how many rows are to be made.
        decoders: processes that decode.
        batch_size: clips in one forward pass.

    Returns:
        By name `split`, `videos`, `top1`, `top5` of those that were scored.

    Raises:
        GateError: a teacher is far below its published or measured accuracy, answers no better than
            chance, answers probabilities, or has classes in another order than the samples table;
            only told where `extract.gate.enforce` is false.
        stages.scoring.ScoringError: not one video of the subset can be read.
    """
    problems = _wrong_classes(run, table)
    count = videos_to_score(run, table, rows)
    known = _scores_of_teach(run, table, models)
    unknown = {name: model for name, model in models.items() if name not in known}
    hints = {}
    if unknown and count:
        subset = _subset(run, table, count)
        split = "/".join(subset.splits())
        scored = score(
            unknown,
            Path(run.prepare.root),
            subset,
            decoders,
            batch_size,
            precision=run.extract.precision,
            what="scoring the teachers",
        )
        for name in unknown:
            known[name] = {
                "split": split,
                "videos": len(scored.rows),
                **scored.accuracies(name),
            }
            problems += _not_logits(name, scored)
        hints = {name: _hint(scored, name) for name in unknown}
    elif unknown and run.extract.gate.samples:
        console.print(f"{', '.join(unknown)}: not scored before this short run of {rows} rows")
    if run.extract.gate.samples:
        for name, figures in known.items():
            problems += _far_below(run, table, name, models[name], figures, hints.get(name))
    if problems and run.extract.gate.enforce:
        raise GateError("\n".join([*problems, _WAY_OUT.format(run.name)]))
    if problems:
        console.print(
            "\n".join([*problems, "Going on all the same: extract.gate.enforce is false"])
        )
    return known


def videos_to_score(run: Run, table: Samples, rows: int) -> int:
    """On how many videos teachers are scored before so many rows are made; 0 where they are few."""
    count = min(run.extract.gate.samples, rows // _PART)
    return min(count, len(table.of_splits(_splits(run, table)))) if count >= _LEAST else 0


_CAUSES = """\
  Likely causes:
  - the class order: label i of the samples table must be output i of the teacher
  - the preprocessing: `dualkd models --json NAME` shows frames, stride, size, mean and std, which
    must be those that the weights were trained with, as must the order of the colours
  - the weights: of another dataset, or with a head that was never trained (`dualkd teach` does)"""
_WAY_OUT = (
    "Nothing was extracted. Mend the teachers in configs/{}.yaml; or `extract.gate: "
    "{{enforce: false}}` there goes on all the same"
)


def _scores_of_teach(
    run: Run, table: Samples, models: Mapping[str, VideoModel]
) -> dict[str, dict[str, Any]]:
    """What `teach` measured of these very weights on samples that are the same today, by name."""
    path = run.outputs / "teach.json"
    if not path.exists() or run.evaluate.split not in table.splits():
        return {}
    scores = json.loads(path.read_text())
    digest = labelled(table.of_splits([run.evaluate.split])).digest()
    known = {}
    for name, model in models.items():
        score = scores.get(name, {})
        same_samples = score.get("samples_sha256") == digest
        if same_samples and score.get("weights_sha256") == weights_digest(model.net):
            known[name] = {figure: score[figure] for figure in ("split", "videos", "top1", "top5")}
    return known


def _subset(run: Run, table: Samples, count: int) -> Samples:
    """So many labelled samples, drawn by the seed of the views."""
    samples = labelled(table.of_splits(_splits(run, table)))
    rows = np.random.default_rng(run.extract.views.seed).permutation(len(samples))[:count]
    return samples.take(np.sort(rows))


def _splits(run: Run, table: Samples) -> list[str]:
    """What is scored: the evaluation split, or where there is none, what is extracted."""
    return [run.evaluate.split] if run.evaluate.split in table.splits() else run.extract.splits


def _wrong_classes(run: Run, table: Samples) -> list[str]:
    """Published weights answer their makers' classes, in their order.

    So do those of a file that is not ours, where the classes are Kinetics-400's in another order.
    """
    problems = []
    for name, teacher in run.teachers.items():
        theirs = published_classes(teacher.model)
        ours = next(iter(table.classes.values()))
        if theirs is None or [_plain(one) for one in ours] == [_plain(one) for one in theirs]:
            continue
        if teacher.weights != PUBLISHED and not _are_kinetics(ours):
            continue
        if recorded_facts(teacher.weights) is not None:
            continue
        pairs = zip(ours, theirs, strict=False)
        first = next((n for n, (a, b) in enumerate(pairs) if _plain(a) != _plain(b)), len(ours))
        problems.append(
            f"{name}: published weights of {teacher.model} answer the {len(theirs)} classes of "
            f"Kinetics-400 in alphabetical order; the samples table has others: class {first} is "
            f"{_at(theirs, first)} for the teacher and {_at(ours, first)} in the table"
        )
    return problems


def _plain(name: str) -> str:
    """A class name as lists of it agree: mmaction2 writes underscores, the CSVs quotes."""
    return name.strip().strip('"').replace("_", " ").lower()


def _are_kinetics(names: Sequence[str]) -> bool:
    """Whether classes are the 400 official ones, in whatever order."""
    return {_plain(one) for one in names} == {_plain(one) for one in class_names()}


def _at(names: Sequence[str], index: int) -> str:
    return repr(names[index]) if index < len(names) else "nothing"


def _not_logits(name: str, scored: Scored) -> list[str]:
    for head, rows in scored.logits[name].items():
        sums = rows.astype(np.float64).sum(axis=1)
        if (rows >= 0).all() and np.allclose(sums, 1.0, atol=1e-3):
            return [
                f"{name} answers probabilities for {head!r}, not logits: every row is non-negative "
                "and sums to 1. Softmax in a model's head makes every distillation loss wrong"
            ]
    return []


def _hint(scored: Scored, name: str) -> str:
    """How sure and how varied the answers are: it tells the causes apart."""
    logits: NDArray[np.float32] = next(iter(scored.logits[name].values()))
    sure = float(torch.softmax(torch.from_numpy(logits), dim=1).amax(dim=1).mean())
    _, counts = np.unique(logits.argmax(axis=1), return_counts=True)
    return (
        f"  Its answers: mean probability {sure:.2f}, {len(counts)} different ones, the most "
        f"frequent {counts.max() / len(logits):.0%} of all. Sure and varied but wrong speaks for "
        "the class order; unsure or always the same for the preprocessing or the weights"
    )


def _expected(run: Run, table: Samples, name: str, model: VideoModel) -> Expected | None:
    """What its makers published, or what was measured when it was trained."""
    facts = recorded_facts(run.teachers[name].weights) or {}
    if "top1" in facts:
        return Expected(float(facts["top1"]), f"measured on {facts.get('validation')}")
    published = model_entry(model.name).published
    if published is None or not _are_kinetics(next(iter(table.classes.values()))):
        return None
    return Expected(published.top1, "published, of several views")


def _far_below(
    run: Run,
    table: Samples,
    name: str,
    model: VideoModel,
    figures: Mapping[str, Any],
    hint: str | None,
) -> list[str]:
    """Show a score beside what was expected; what is wrong with it, if anything is."""
    top1, videos = figures["top1"], figures["videos"]
    expected = _expected(run, table, name, model)
    against = "nothing known to compare it with but chance"
    if expected is not None:
        against = f"{expected.source}: {expected.top1:.1%}"
    line = (
        f"{name} {model.name}: top-1 {top1:.1%}, top-5 {figures['top5']:.1%} on {videos} videos of "
        f"{figures['split']} ({against})"
    )
    console.print(line)
    if videos < _LEAST:
        return []
    chance = 1 / math.prod(table.heads.values())
    if expected is None:
        bound = chance + _SIGMAS * math.sqrt(chance * (1 - chance) / videos)
        wrong, why = top1 <= bound, f"no better than chance, {chance:.1%}"
    else:
        share = min(max(expected.top1, 0.0), 1.0)
        bound = share - _MARGIN - _SIGMAS * math.sqrt(share * (1 - share) / videos)
        wrong = top1 < bound
        why = f"far below that: less than {bound:.1%}, which allows for one view and few videos"
    if not wrong:
        return []
    return [f"{line} is {why}", *([hint] if hint else []), _CAUSES]
