"""`dualkd ablate`: what each part of the method gives, over several seeds, from one cache.

All students of one seed start from the same weights and see the same clips in the same order; only
the terms of the loss differ. docs/ablation.md tells how to read the table.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from cache import Store, TeacherCache, open_cache
from pipeline.config import Run
from pipeline.models import VideoModel
from pipeline.ranks import launched
from pipeline.resuming import Past
from pipeline.samples import Samples, read_samples, samples_from_table
from pipeline.weights import WeightsError
from stages.ablation_results import (
    AblationError,
    Student,
    check_unchanged,
    scored_on,
    student_of,
)
from stages.ablation_table import summary, write_all
from stages.distill import check_cache, tell_order
from stages.feed import Part, used_part
from stages.memory import free_memory, memory_of
from stages.progress import console
from stages.recorded import tell_other_versions
from stages.scoring import labelled, score
from stages.side_by_side import run_many
from stages.student_training import Job
from stages.variants import NAMES, of_everything, variants_of
from stages.wording import plural, size


@dataclass(frozen=True)
class Options:
    """What does not decide how the students turn out.

    Attributes:
        cache: its folder or URL.
        seeds: how many, from `distill.seed` on.
        only: the variants that are trained; the table has all that stand.
        device: what the students compute on.
        decoders: processes that decode, of each training, if videos are decoded.
        batch_size: clips in one forward pass of the scoring.
        at_once: trainings side by side; as many as fit if None.
        checkpoint_steps: steps from one checkpoint to the next.
        anew: whether what stands of the chosen ones is dropped.
        store: where chunk files of a cache at a URL are kept.
    """

    cache: str | Path
    seeds: int
    only: Sequence[str]
    device: torch.device
    decoders: int = 0
    batch_size: int = 32
    at_once: int | None = None
    checkpoint_steps: int = 200
    anew: bool = False
    store: Store = field(default_factory=Store)


def ablate(run: Run, options: Options) -> dict[str, Any]:
    """Train and score what is not there yet; write the table as CSV, JSON and Markdown, and a plot.

    Returns:
        The table, plain JSON; its `failed` names the students that could not be made, with the
        reasons. Those that could stand.

    Raises:
        AblationError: what stands was trained with another config.
        cache.CacheError: the cache is another one than the config describes, or not complete.
    """
    if launched():
        raise AblationError(
            "ablate trains several students at once by itself: start it without torchrun, and "
            "choose how many with --at-once"
        )
    samples = labelled(read_samples(run.samples_path).of_splits([run.evaluate.split]))
    everything = of_everything(run)
    cache = open_cache(options.cache, blocks=True, store=options.store)
    check_cache(everything, cache)
    tell_other_versions(cache)
    part = used_part(everything, cache)
    tell_order(cache, part)
    variants = variants_of(run)
    students = [
        student_of(run, variants[name], run.distill.seed + number, cache, part)
        for number in range(options.seeds)  # seed after seed: the table fills evenly
        for name in NAMES
    ]
    chosen = [student for student in students if student.variant.name in options.only]
    if options.anew:
        for student in chosen:
            student.forget()
    check_unchanged(chosen)
    failed = _train(chosen, cache, part, options)
    comparable = [student for student in students if not student.differences()]
    if others := len(students) - len(comparable):
        console.print(
            f"left out: {plural(others, 'student')} that were trained with another config, of "
            "variants that --only does not name"
        )
    of = scored_on(run.evaluate.split, samples)
    failed |= _score(run, comparable, samples, of, options)
    done = [student for student in comparable if student.score_of(of) is not None]
    facts = summary(run, done, of, options.seeds, failed)
    write_all(run.outputs / "ablate", facts)
    return facts


def _train(
    chosen: Sequence[Student], cache: TeacherCache, part: Part, options: Options
) -> dict[str, str]:
    """Train those that are not trained yet; returns why some could not be, by name."""
    students = [student for student in chosen if not student.trained]
    if stand := len(chosen) - len(students):
        console.print(f"{stand} of {plural(len(chosen), 'student')} are trained already")
    if not students:
        return {}
    at_once, why = options.at_once, "by --at-once"
    if at_once is None:
        at_once, why = _fitting(students[0].run, cache, options)
    console.print(f"{plural(len(students), 'student')} to train, {at_once} at once: {why}")
    jobs = [
        Job(
            name=student.name,
            run=student.run,
            cache=cache,
            part=part,
            folder=student.folder,
            device=str(options.device),
            threads=max(1, (os.cpu_count() or 1) // at_once),
            decoders=options.decoders,
            checkpoint_steps=options.checkpoint_steps,
        )
        for student in students
    ]
    for student in students:
        student.begin()
    heads = samples_from_table(cache.samples, cache.place).heads
    failed: dict[str, str] = {}

    def end(index: int, future: Future[Past]) -> None:
        student, error = students[index], future.exception()
        try:
            if error is None:
                student.end(heads)
        except WeightsError as unreadable:
            error = unreadable
        if error is not None:
            student.fail(error)
            failed[student.name] = _reason(error, student)

    run_many(jobs, at_once, end)
    return failed


def _fitting(run: Run, cache: TeacherCache, options: Options) -> tuple[int, str]:
    """How many trainings run at once, and why: one on a GPU, else what cores and memory allow.

    However few are left to train: the threads of each are then the same.
    """
    if options.device.type != "cpu":
        return 1, f"on {options.device} --at-once chooses more"
    cores, free = os.cpu_count() or 1, free_memory()
    need = memory_of(run, cache, options.decoders)
    why = (
        f"{plural(cores, 'core')}, and of {size(free)} free memory each takes about {size(need)}; "
        "--at-once chooses another number"
    )
    return max(1, min(cores, free // need)), why


def _reason(error: BaseException, student: Student) -> str:
    """Why a training failed, in a line."""
    if isinstance(error, BrokenProcessPool):
        return "a process died, often of memory: the same command goes on, with a smaller --at-once"
    said = str(error).partition("\n")[0]
    return f"{type(error).__name__}: {said} (all of it in {student.folder / 'failed.txt'})"


def _score(
    run: Run,
    students: Sequence[Student],
    samples: Samples,
    of: dict[str, Any],
    options: Options,
) -> dict[str, str]:
    """Score the trained ones on the single centre view; returns why some could not be, by name.

    One decode serves them all. A score that is of other samples is replaced.
    """
    models: dict[str, VideoModel] = {}
    failed: dict[str, str] = {}
    waiting = {
        student.name: student
        for student in students
        if student.trained and student.score_of(of) is None
    }
    for name, student in waiting.items():
        try:
            models[name] = student.load(samples.heads).to(options.device)
        except WeightsError as error:
            failed[name] = str(error)
    if not models:
        return failed
    scored = score(
        models,
        Path(run.prepare.root),
        samples,
        options.decoders,
        options.batch_size,
        max_failed_share=run.extract.max_failed_share,
        what=f"scoring {plural(len(models), 'student')}",
    )
    for name in models:
        videos = {"videos": len(scored.rows), "unreadable": len(samples) - len(scored.rows)}
        waiting[name].keep(score={"of": of, **videos, **scored.accuracies(name)})
    return failed


def check_all_there(facts: Mapping[str, Any]) -> None:
    """Raise what a table says of students that could not be made, once it was shown.

    Raises:
        AblationError: naming them, by their reasons.
    """
    failed: Sequence[Mapping[str, str]] = facts["failed"]
    by_reason: dict[str, list[str]] = {}
    for one in failed:
        by_reason.setdefault(one["reason"], []).append(one["student"])
    if failed:
        lines = [f"  {'; '.join(names)}: {reason}" for reason, names in by_reason.items()]
        head = (
            f"{plural(len(failed), 'student')} could not be made; the others stand, and the same "
            "command tries these again:"
        )
        raise AblationError("\n".join([head, *lines]))
