"""Stage `distill`: the student from the cache, and the same student from labels alone.

Both runs start from the same weights and see the same clips in the same order; only the loss
differs. So the difference between them is what distillation gives.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import pyarrow as pa
import torch

from cache import CacheError, Store, TeacherCache, command, open_cache
from pipeline.config import Run
from pipeline.config_training import Weights
from pipeline.files import write_whole
from pipeline.models import VideoModel
from pipeline.objective import LABELS_ONLY
from pipeline.ranks import ALONE, Ranks, joined, launched
from pipeline.resuming import Past
from pipeline.samples import Samples, read_samples, samples_from_table
from pipeline.totals import CONFIDENCE_BINS
from pipeline.weights import load_weights, weights_digest
from stages.feed import Part, used_part
from stages.files import write_csv, write_json, write_json_lines
from stages.progress import console, meter
from stages.recorded import compare_samples, in_lines, tell_other_versions
from stages.side_by_side import run_side_by_side, steps_of
from stages.stored_clips import stored_format, why_decoded
from stages.student_training import Job, forget_checkpoint, train_student
from stages.teachers import (
    added_identities,
    check_added,
    identity_for,
    load_added,
    load_teachers,
)

VARIANTS = ("baseline", "student")


@dataclass(frozen=True)
class Options:
    """What does not decide how a student turns out.

    Attributes:
        cache: its folder or URL.
        device: what the students compute on.
        decoders: processes that decode, of each, if videos are decoded.
        checkpoint_steps: steps from one checkpoint to the next.
        anew: whether what an interrupted run has left is dropped.
        store: where chunk files of a cache at a URL are kept.
    """

    cache: str | Path
    device: torch.device
    decoders: int
    checkpoint_steps: int = 200
    anew: bool = False
    store: Store = field(default_factory=Store)


def distill(run: Run, options: Options) -> None:
    """Train baseline and student and write weights and logs.

    Side by side on a CPU; on a GPU, and by ranks, one after another.

    Raises:
        cache.CacheError: the cache is another one than the config describes, or not complete.
        pipeline.resuming.CheckpointError: an interrupted run trained something else.
    """
    with ExitStack() as stack:
        ranks, device = ALONE, options.device
        if launched():
            ranks, device = stack.enter_context(joined(options.device))
            console.quiet = not ranks.first
        jobs = _jobs(run, replace(options, device=device), ranks)
        if options.anew and ranks.first:
            for job in jobs:
                forget_checkpoint(job.folder)
        ranks.wait()
        # Two students would share one GPU's memory, and either alone can fill it.
        in_turn = launched() or device.type != "cpu"
        pasts = _run_in_turn(jobs, ranks) if in_turn else run_side_by_side(jobs)
        if ranks.first:
            _write(run, jobs, dict(zip(VARIANTS, pasts, strict=True)))
        ranks.wait()


def _jobs(run: Run, options: Options, ranks: Ranks) -> list[Job]:
    """Both students: the same but for the terms of the loss."""
    cache = open_cache(options.cache, blocks=True, store=options.store)
    check_cache(run, cache)
    tell_other_versions(cache)
    clips = _clip_source(run, cache)
    console.print(f"{cache}; the student's clips are {clips}", soft_wrap=True)
    part = used_part(run, cache)
    tell_order(cache, part)
    console.print(
        f"{part.num_usable} of {cache.num_samples} samples × {part.valid.shape[1]} views can be "
        "used"
    )
    cores, together = os.cpu_count() or 1, ranks.world if launched() else len(VARIANTS)
    return [
        Job(
            name=variant,
            run=run if variant == "student" else with_weights(run, LABELS_ONLY),
            cache=cache,
            part=part,
            folder=run.outputs / "distill" / variant,
            device=str(options.device),
            threads=max(1, cores // together),
            decoders=options.decoders,
            checkpoint_steps=options.checkpoint_steps,
        )
        for variant in VARIANTS
    ]


def tell_order(cache: TeacherCache, part: Part) -> None:
    """Say it where batches are not drawn from all chunks, or not all was pulled."""
    held = cache.chunks_held(part.fields)
    if held < cache.num_chunks:
        console.print(
            f"not all of {cache.place} is at hand at once: each batch is drawn from {held} of its "
            f"{cache.num_chunks} chunks, in another order each epoch"
        )
    if cache.origin and not part.made.all():
        console.print(
            f"{cache.place} was pulled in part: {part.made.mean():.1%} of the rows that the config "
            "asks for are here, and only these are trained on"
        )


def with_weights(run: Run, weights: Weights) -> Run:
    """The same run with other λ."""
    return run.model_copy(update={"distill": run.distill.model_copy(update={"weights": weights})})


def _write(run: Run, jobs: Sequence[Job], pasts: Mapping[str, Past]) -> None:
    """What later stages read, once both are trained."""
    out, cache = run.outputs / "distill", jobs[0].cache
    samples = samples_from_table(cache.samples, cache.place)
    for job in jobs:
        kept = job.folder / f"{run.distill.train.keep}.safetensors"
        write_whole(out / f"{job.name}.safetensors", kept.read_bytes())
    _write_logs(out, pasts, samples)
    write_json(
        out / "distill.json",
        {
            "cache_fingerprint": cache.fingerprint,
            "rows_per_epoch": jobs[0].part.num_usable,
            "clips": stored_format(cache, run.distill.student) or "decoded",
            "config": run.distill.model_dump(mode="json"),
            "weights_sha256": {
                variant: weights_digest(model.net)
                for variant, model in load_students(run, samples).items()
            },
            "final": {variant: past.records[-1] for variant, past in pasts.items()},
        },
    )
    for job in jobs:
        forget_checkpoint(job.folder)


def _clip_source(run: Run, cache: TeacherCache) -> str:
    """Where the student's clips come from, for people."""
    student = run.distill.student
    match stored_format(cache, student):
        case "raw":
            return f"stored in {cache.place}, raw"
        case "jpeg":
            return f"stored in {cache.place} as JPEG: not quite the pixels of the videos"
    why = why_decoded(cache, student)
    return f"decoded from the videos as they are needed{f': {why}' if why else ''}"


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
    if cache.origin and used.made.any():
        return  # pulled, maybe in part: what is here is what there is to train on
    if cache.num_views < views or not used.made.all():
        options = ("--dataset", run.name, "--out", cache.place, "--views", views)
        extract = command("dualkd-cache", "extract", *options)
        raise CacheError(
            f"the config trains on {views} views of {len(used.rows)} samples; {cache.place} has "
            f"{cache.num_views} views, and of these rows {used.made.mean():.1%} are made. "
            f"`{extract}` makes the rest, distill.views and distill.fraction choose less"
        )


def _run_in_turn(jobs: Sequence[Job], ranks: Ranks) -> list[Past]:
    """Train one after another, each by all ranks."""
    pasts = []
    for job in jobs:
        with meter(f"training {job.name}", total=steps_of(job), unit="steps") as counter:
            pasts.append(train_student(job, counter.advance, counter.note, ranks))
    return pasts


def _write_logs(out: Path, pasts: Mapping[str, Past], samples: Samples) -> None:
    """One line per run and epoch as JSON, one table per run, two of DATW's weights."""
    lines = [
        {"variant": variant, **record} for variant, past in pasts.items() for record in past.records
    ]
    write_json_lines(out / "metrics.jsonl", lines)
    for variant, past in pasts.items():
        write_csv(out / f"{variant}.csv", pa.Table.from_pylist(past.records))
    names = next(iter(samples.classes.values()))
    weights = [
        {"epoch": epoch, "class": name, "vit_weight": weight}
        for epoch, by_class in enumerate(pasts["student"].by_class)
        for name, weight in zip(names, by_class, strict=False)
    ]
    schema = pa.schema(
        [("epoch", pa.int64()), ("class", pa.string()), ("vit_weight", pa.float64())]
    )
    write_csv(out / "datw.csv", pa.Table.from_pylist(weights, schema=schema))
    write_csv(out / "datw_confidence.csv", _by_confidence(pasts["student"]))


def _by_confidence(past: Past) -> pa.Table:
    """DATW's weights by epoch and both teachers' confidence: bins, named by their low ends."""
    rows = [
        (epoch, place // CONFIDENCE_BINS, place % CONFIDENCE_BINS, int(clips), weight)
        for epoch, by_confidence in enumerate(past.by_confidence)
        for place, (weight, clips) in enumerate(by_confidence)
        if clips
    ]
    epochs, of_vit, of_cnn, clips, weights = zip(*rows, strict=True) if rows else [()] * 5
    return pa.table(
        {
            "epoch": pa.array(epochs, pa.int64()),
            "vit_confidence": pa.array([low / CONFIDENCE_BINS for low in of_vit], pa.float64()),
            "cnn_confidence": pa.array([low / CONFIDENCE_BINS for low in of_cnn], pa.float64()),
            "clips": pa.array(clips, pa.int64()),
            "vit_weight": pa.array(weights, pa.float64()),
        }
    )
