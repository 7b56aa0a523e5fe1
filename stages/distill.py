"""Stage `distill`: the student from the cache, and the same student from labels alone.

Both runs start from the same weights and see the same clips in the same order; only the loss
differs. So the difference between them is what distillation gives.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import active_children, get_context, managers
from pathlib import Path
from queue import Empty, Queue

import pyarrow as pa
import torch

from cache import CacheError, TeacherCache, open_cache
from pipeline.branch import StructureDiscrepancyBranch
from pipeline.config import Run
from pipeline.models import VideoModel, create_model
from pipeline.objective import LABELS_ONLY, Method
from pipeline.processes import ProcessPool, exit_with_parent, ignoring_interrupts
from pipeline.samples import Samples, read_samples, samples_from_table
from pipeline.training import EpochLog, steps_in_epoch, train
from pipeline.weights import load_weights, save_weights, weights_digest
from stages.feed import Feed, used_part
from stages.files import write_csv, write_json, write_text
from stages.progress import console, meters
from stages.recorded import compare_samples, in_lines, tell_other_versions
from stages.stored_clips import clip_field, stored_format, why_not
from stages.teachers import (
    added_identities,
    check_added,
    identity_for,
    load_added,
    load_teachers,
)

VARIANTS = ("baseline", "student")


@dataclass(frozen=True)
class Job:
    """One student to train; travels to the process that does it."""

    run: Run
    variant: str
    cache: TeacherCache
    out: Path
    device: str
    threads: int
    decoders: int


def distill(run: Run, *, cache_path: str | Path, device: torch.device, decoders: int) -> None:
    """Train baseline and student side by side and write weights and logs.

    Raises:
        cache.CacheError: the cache is another one than the config describes, or not complete.
    """
    cache = open_cache(cache_path, blocks=True)
    check_cache(run, cache)
    tell_other_versions(cache)
    console.print(f"{cache}; the student's clips are {_clip_source(run, cache)}")
    if cache.chunks_held < cache.num_chunks:
        console.print(
            f"not all of {cache_path} fits decoded into memory: each batch is drawn from "
            f"{cache.chunks_held} of its {cache.num_chunks} chunks, in another order each epoch"
        )
    out = run.outputs / "distill"
    cores = os.cpu_count() or 1
    jobs = [
        Job(run, variant, cache, out, str(device), max(1, cores // len(VARIANTS)), decoders)
        for variant in VARIANTS
    ]
    usable = used_part(run, cache).valid
    rows = int(usable.any(axis=1).sum())
    console.print(f"{rows} of {cache.num_samples} samples × {usable.shape[1]} views can be used")
    steps = run.distill.train.epochs * steps_in_epoch(rows, run.distill.train.batch_size)
    logs = dict(zip(VARIANTS, _run_side_by_side(jobs, steps), strict=True))
    samples = samples_from_table(cache.samples, str(cache_path))
    _write_logs(out, logs, samples)
    write_json(
        out / "distill.json",
        {
            "cache_fingerprint": cache.fingerprint,
            "rows_per_epoch": rows,
            "clips": stored_format(cache, run.distill.student) or "decoded",
            "config": run.distill.model_dump(mode="json"),
            "weights_sha256": {
                variant: weights_digest(model.net)
                for variant, model in load_students(run, samples).items()
            },
            "final": {variant: of_run[-1].record for variant, of_run in logs.items()},
        },
    )


def _clip_source(run: Run, cache: TeacherCache) -> str:
    """Where the student's clips come from, for people."""
    student = run.distill.student
    match stored_format(cache, student):
        case "raw":
            return f"stored in {cache.place}, raw"
        case "jpeg":
            return f"stored in {cache.place} as JPEG: not quite the pixels of the videos"
    source = "decoded from the videos as they are needed"
    field = cache.fields.get(clip_field(student))
    return f"{source}: {why_not(field, student)}" if field else source


def load_students(run: Run, samples: Samples) -> dict[str, VideoModel]:
    """What `distill` made, by variant, in evaluation mode.

    Raises:
        pipeline.weights.WeightsError: a file is missing, or holds another network.
    """
    paths = {variant: run.outputs / "distill" / f"{variant}.safetensors" for variant in VARIANTS}
    return {
        variant: load_weights(run.distill.student, samples.heads, path)
        for variant, path in paths.items()
    }


def check_cache(run: Run, cache: TeacherCache) -> None:
    """Refuse a cache that the config does not describe.

    Raises:
        cache.IdentityMismatch: naming every field that differs.
        cache.CacheError: rows are missing.
    """
    samples = samples_from_table(cache.samples, cache.place)
    teachers = load_teachers(run, samples, torch.device("cpu"))
    cache.check_identity(identity_for(run, samples, teachers.identities(run), cache))
    names = [name for name in run.distill.teachers if name in run.extract.added]
    added = load_added(run, samples, torch.device("cpu"), names)
    check_added(cache, added_identities(run, added))
    if run.samples_path.exists():
        _, changed = compare_samples(cache.samples, read_samples(run.samples_path).table)
        if changed:
            raise CacheError(
                f"{cache.place} was made from other samples:\n{in_lines(changed)}\n"
                "Prepare the samples table that it was made from, or extract another cache."
            )
    views = run.distill_views
    used = used_part(run, cache)
    if cache.num_views < views or not used.made.all():
        raise CacheError(
            f"the config trains on {views} views of {len(used.rows)} samples; {cache.place} has "
            f"{cache.num_views} views, and of these rows {used.made.mean():.1%} are made. "
            f"`dualkd-cache extract --dataset {run.name} --out {cache.place} --views {views}` "
            "makes the rest, "
            "distill.views and distill.fraction choose less"
        )


def _run_side_by_side(jobs: Sequence[Job], steps: int) -> list[list[EpochLog]]:
    """Train each in a process of its own: small networks do not fill several cores."""
    with ExitStack() as stack:
        manager = managers.SyncManager(ctx=get_context("spawn"))
        with ignoring_interrupts():
            manager.start(initializer=exit_with_parent)
        ticks: Queue[int] = stack.enter_context(manager).Queue()
        pool = stack.enter_context(ProcessPool(len(jobs)))
        stack.enter_context(_ending_all_on_error())
        futures = [pool.submit(train_student, job, index, ticks) for index, job in enumerate(jobs)]
        names = [f"training {job.variant}" for job in jobs]
        counters = stack.enter_context(meters(names, total=steps, unit="steps"))
        while not all(future.done() for future in futures) or not ticks.empty():
            _raise_first(futures)
            try:
                counters[ticks.get(timeout=0.2)].advance()
            except Empty:
                continue
        return [future.result() for future in futures]


@contextmanager
def _ending_all_on_error() -> Iterator[None]:
    """End processes where one fails or Ctrl-C comes: else a training that goes on is waited for."""
    try:
        yield
    except BaseException:
        for process in active_children():
            process.terminate()
        raise


def _raise_first(futures: Sequence[Future[list[EpochLog]]]) -> None:
    """Stop as soon as one run fails."""
    for future in futures:
        if future.done() and (error := future.exception()) is not None:
            for other in futures:
                other.cancel()
            raise error


def train_student(job: Job, index: int, ticks: Queue[int]) -> list[EpochLog]:
    """Train one variant; runs in its own process and puts `index` into `ticks` after each step."""
    run, device = job.run, torch.device(job.device)
    torch.set_num_threads(job.threads)
    cache = job.cache
    samples = samples_from_table(cache.samples, cache.place)
    recipe = run.distill.train
    method = Method(
        run.distill.weights if job.variant == "student" else LABELS_ONLY,
        temperature=run.distill.temperature,
        label_smoothing=recipe.label_smoothing,
    )
    torch.manual_seed(run.distill.seed)
    model = create_model(run.distill.student, samples.heads, dropout=recipe.dropout)
    branch = None
    if method.weights.sdd > 0:
        projection = run.extract.projection
        branch = StructureDiscrepancyBranch(model.map_channels, projection.dim, projection.grid)
        branch.to(device)
    torch.manual_seed(run.distill.seed)  # again: the branch must not shift the dropout's draws
    feed = Feed(run, cache, samples, method, device, job.decoders)
    logs = []
    for log in train(
        model=model.to(device),
        branch=branch,
        recipe=recipe,
        method=method,
        batches=feed,
        steps_per_epoch=feed.steps,
        on_step=partial(ticks.put, index),
    ):
        logs.append(log)
    facts = {"variant": job.variant, "cache": cache.fingerprint, "seed": run.distill.seed}
    save_weights(model, job.out / f"{job.variant}.safetensors", facts)
    return logs


def _write_logs(out: Path, logs: dict[str, list[EpochLog]], samples: Samples) -> None:
    """One line per run and epoch as JSON, one table per run, one of DATW's weights by class."""
    lines = [
        json.dumps({"variant": variant, "epoch": log.epoch, **log.record})
        for variant, of_run in logs.items()
        for log in of_run
    ]
    write_text(out / "metrics.jsonl", "\n".join(lines) + "\n")
    for variant, of_run in logs.items():
        rows = [{"epoch": log.epoch, **log.record} for log in of_run]
        write_csv(out / f"{variant}.csv", pa.Table.from_pylist(rows))
    names = next(iter(samples.classes.values()))
    weights = [
        {"epoch": log.epoch, "class": name, "vit_weight": weight}
        for log in logs["student"]
        for name, weight in zip(names, log.vit_weight_by_class, strict=False)
    ]
    schema = pa.schema(
        [("epoch", pa.int64()), ("class", pa.string()), ("vit_weight", pa.float64())]
    )
    write_csv(out / "datw.csv", pa.Table.from_pylist(weights, schema=schema))
