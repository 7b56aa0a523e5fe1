"""One student trained from a cache; a training that was killed goes on to the very same end."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cache import TeacherCache, command, is_url, package_versions
from pipeline.config import Run
from pipeline.config_file import dump_config
from pipeline.learner import make_learner
from pipeline.models import create_model
from pipeline.objective import TrainingError
from pipeline.optimising import Training, start_training, uses_bf16
from pipeline.ranks import ALONE, Ranks
from pipeline.resuming import Past, save_checkpoint
from pipeline.samples import Samples, read_samples, samples_from_table
from pipeline.training import EpochLog, train
from pipeline.weights import weights_digest
from stages.epochs import go_on, keep_epoch, validation_top1
from stages.feed import Feed, Part, method_of, sizes_of
from stages.files import write_json, write_text
from stages.progress import console
from stages.recorded import environment
from stages.stored_clips import not_pulled, why_decoded
from stages.watching import Watch
from stages.wording import figure, percent, plural

CHECKPOINT = "checkpoint.pt"
_TRIPLET = 3  # clips: with fewer there are no angles
_WAITED = 0.1  # of the time, for clips: less is not worth a word


@dataclass(frozen=True)
class Job:
    """One student to train; travels to the process that does it.

    Attributes:
        name: for people, and in the facts of its weights.
        run: the config; its `distill` describes this student.
        cache: what it learns from.
        part: what of the cache.
        folder: where it writes.
        device: what it computes on.
        threads: of this process, on a CPU.
        decoders: processes that decode, if videos are decoded.
        checkpoint_steps: steps from one checkpoint to the next; there is one after each epoch too.
        feed: what makes the batches.
    """

    name: str
    run: Run
    cache: TeacherCache
    part: Part
    folder: Path
    device: str
    threads: int
    decoders: int
    checkpoint_steps: int
    feed: type[Feed] = Feed


def train_student(
    job: Job,
    on_steps: Callable[[int], object] = lambda _steps: None,
    on_epoch: Callable[[str], object] = lambda _said: None,
    ranks: Ranks = ALONE,
) -> Past:
    """Train one student, going on from its checkpoint if there is one.

    Its folder gets `last.safetensors`, and `best.safetensors` where there is a validation split;
    `run.json`: the resolved config, the cache's fingerprint, the environment; what `Watch` writes;
    and `checkpoint.pt`, which stays until it is removed: a finished training is not done again.

    Args:
        job: which.
        on_steps: is told how many steps were done more.
        on_epoch: is told in a few words how each epoch went.
        ranks: those that train it together; all must call this.

    Returns:
        What its epochs have left.

    Raises:
        pipeline.resuming.CheckpointError: the checkpoint belongs to another training, or cannot
            be written.
        pipeline.objective.TrainingError: the loss is not finite, or an option does not fit.
    """
    run, device, folder = job.run, torch.device(job.device), job.folder
    recipe, method = run.distill.train, method_of(run)
    torch.set_num_threads(job.threads)
    feed = job.feed(run, job.cache, job.part, device, job.decoders, ranks)
    training = _start(job, feed.steps, ranks)
    belongs_to = _belongs_to(job, training)
    checkpoint = folder / CHECKPOINT
    past, steps_before = go_on(job.name, checkpoint, training, belongs_to, feed.steps, ranks)
    if steps_before:
        on_steps(steps_before)
    elif ranks.first:  # of another training
        (folder / "best.safetensors").unlink(missing_ok=True)
    validated = None
    if run.distill.validation is not None:
        validated = read_samples(run.samples_path).of_splits([run.distill.validation])
    if ranks.first:
        _write_facts(job, ranks)
        _tell_small_pieces(job, ranks)

    def step_done() -> None:
        on_steps(1)
        if training.steps_done % job.checkpoint_steps == 0:
            save_checkpoint(checkpoint, training, past, belongs_to, ranks)

    logs = train(
        training, recipe=recipe, method=method, batches=feed, on_step=step_done, ranks=ranks
    )
    with ExitStack() as stack:
        watch = stack.enter_context(closing(Watch(folder, past))) if ranks.first else None
        for log in _named(job, training, logs):
            _note(job, training, past, log, validated, ranks)
            save_checkpoint(checkpoint, training, past, belongs_to, ranks)
            if watch is not None:
                watch.epoch(past)
                on_epoch(_in_words(past.records[-1]))
                _tell_waiting(job, past, feed)
    return past


def _named(job: Job, training: Training, logs: Iterator[EpochLog]) -> Iterator[EpochLog]:
    """The epochs; what stops them says in which training and epoch it was."""
    try:
        yield from logs
    except TrainingError as error:
        raise TrainingError(f"{job.name}, epoch {training.epochs_done}: {error}") from error


def _start(job: Job, steps: int, ranks: Ranks) -> Training:
    """The training before its first step; the same start whatever the terms of the loss."""
    config, device = job.run.distill, torch.device(job.device)
    samples = samples_from_table(job.cache.samples, job.cache.place)
    torch.manual_seed(config.seed)
    model = create_model(config.student, samples.heads, dropout=config.train.dropout)
    learner = make_learner(model, config.weights, sizes_of(job.run, job.cache))
    if config.train.sync_batchnorm and ranks.world > 1:
        convert_sync_batchnorm = torch.nn.SyncBatchNorm.convert_sync_batchnorm
        if device.type != "cuda":
            raise TrainingError("distill.train.sync_batchnorm is for GPUs; torch has none for CPUs")
        model.net = convert_sync_batchnorm(model.net)  # type: ignore[no-untyped-call]
    # Again: the learner's parts must not shift the dropout's draws, which ranks have of their own.
    torch.manual_seed(config.seed + ranks.rank)
    return start_training(learner.to(device), config.train, steps)


def _belongs_to(job: Job, training: Training) -> dict[str, Any]:
    """All that the training depends on, plain JSON; a checkpoint is for just that."""
    config, device = job.run.distill, torch.device(job.device)
    described = config.model_dump(mode="json")
    del described["train"]["keep"], described["train"]["precision"]
    return {
        "distill": described,
        "bf16": uses_bf16(config.train.precision, device),
        "cache_fingerprint": job.cache.fingerprint,
        "rows": {"count": len(job.part.rows), "valid": int(job.part.valid.sum())},
        "chunks_held": job.cache.chunks_held(job.part.fields),  # decides the order of the rows
        "first_weights_sha256": weights_digest(training.learner.model.net),
    }


def _write_facts(job: Job, ranks: Ranks) -> None:
    """The resolved config, as YAML that can be used again, and where the training ran."""
    write_text(job.folder / "config.yaml", dump_config(job.run))
    write_json(
        job.folder / "run.json",
        {
            "name": job.name,
            "cache": job.cache.place,
            "cache_fingerprint": job.cache.fingerprint,
            "device": job.device,
            "gpu": torch.cuda.get_device_name(job.device) if "cuda" in job.device else None,
            "ranks": ranks.world,
            "threads": job.threads,
            "environment": {**environment(), "packages": package_versions()},
        },
    )


def _tell_small_pieces(job: Job, ranks: Ranks) -> None:
    """Say so where relations have no pairs, or no triplets, to be of."""
    recipe = job.run.distill.train
    clips = recipe.batch_size // (ranks.world * recipe.accumulate)
    if job.run.distill.weights.rkd > 0 and clips < _TRIPLET:
        console.print(
            f"{job.name}: distill.weights.rkd is of pairs and triplets of clips, and a piece has "
            f"{plural(clips, 'clip')} (batch_size {recipe.batch_size}, accumulate "
            f"{recipe.accumulate}, {plural(ranks.world, 'rank')}): it adds little or nothing"
        )


def _note(
    job: Job,
    training: Training,
    past: Past,
    log: EpochLog,
    validated: Samples | None,
    ranks: Ranks,
) -> None:
    """Score an epoch if there is a validation split, and keep its weights."""
    run = job.run
    record: dict[str, Any] = {"epoch": log.epoch, **log.record}
    if validated is not None:
        record["top1"] = validation_top1(run, training.result, validated, job.decoders, ranks)
    past.by_class.append(log.vit_weight_by_class)
    past.by_confidence.append(log.vit_weight_by_confidence)
    facts = {
        "variant": job.name,
        "dataset": run.name,
        "classes": samples_from_table(job.cache.samples, job.cache.place).classes,
        "cache": job.cache.fingerprint,
        "seed": run.distill.seed,
    }
    if ranks.first:
        keep_epoch(job.folder, training, past, record, facts, run.distill.validation)
    else:
        past.records.append(record)


def _in_words(record: Mapping[str, Any]) -> str:
    """How an epoch went, for the line of progress."""
    said = [f"epoch {record['epoch'] + 1}", f"loss {figure(record['loss'])}"]
    if "top1" in record:
        said.append(f"top-1 {percent(record['top1'])}")
    if record["waited"] > _WAITED:
        said.append(f"waited {percent(record['waited'], 0)}")
    return ", ".join(said)


def _tell_waiting(job: Job, past: Past, feed: Feed) -> None:
    """Say so, once, as soon as clips were the limit of an epoch."""
    waiting = [record["waited"] > _WAITED for record in past.records]
    if not waiting[-1] or any(waiting[:-1]):
        return
    mend = "they are read from the cache: is its disk, or this machine, busy with other work?"
    student = job.run.distill.student
    if is_url(job.cache.place):
        pull = command("dualkd-cache", "pull", job.cache.place, "FOLDER")
        mend = f"they are fetched from {job.cache.place} when they are used: `{pull}` has them here"
    if not_pulled(job.cache, student):
        mend = f"they are decoded from the videos: {why_decoded(job.cache, student)}"
    elif not feed.stored:
        mend = f"more --decoders, or clips in the cache (extract.clips: [{student}]), would help"
    console.print(
        f"{job.name}, epoch {past.records[-1]['epoch'] + 1}: waited for clips for "
        f"{percent(past.records[-1]['waited'], 0)} of the time; {mend}",
        soft_wrap=True,
    )


def forget_checkpoint(folder: Path) -> None:
    """Remove the checkpoint of a finished training: the next one begins anew."""
    (folder / CHECKPOINT).unlink(missing_ok=True)
