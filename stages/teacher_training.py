"""One teacher trained; what was interrupted goes on from its last checkpoint."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from pipeline.clips import ClipDataset, DrawnViews, Read, Request, iterate
from pipeline.config import Run, Teacher
from pipeline.config_training import TeacherRecipe
from pipeline.files import write_whole
from pipeline.learner import Learner
from pipeline.mixing import Mix, draw_mix
from pipeline.models import VideoModel, create_model
from pipeline.objective import LABELS_ONLY, NO_LABEL, Batch, Method
from pipeline.optimising import start_training, uses_bf16
from pipeline.resuming import Past, save_checkpoint
from pipeline.samples import Samples
from pipeline.training import epoch_batches, steps_in_epoch, train
from pipeline.views import ViewRule
from pipeline.weights import load_weights, weights_digest
from stages.epochs import go_on, keep_epoch, validation_top1
from stages.files import write_csv, write_json_lines
from stages.progress import console, meter

_CHECKPOINT_STEPS = 500  # from one to the next; there is one after each epoch too


class TeachError(ValueError):
    """A teacher cannot be trained; the message says why and the way out."""


@dataclass(frozen=True)
class Labelled:
    """Samples with labels, and where their videos are."""

    root: Path
    samples: Samples

    def __post_init__(self) -> None:
        if not len(self.samples):
            raise TeachError(f"not one sample below {self.root} has a label: nothing to learn from")

    @classmethod
    def of(cls, root: Path, samples: Samples) -> Labelled:
        """Those of some samples that have a label of some head.

        Raises:
            TeachError: none has.
        """
        by_head = samples.labels(NO_LABEL).values()
        labelled = np.any([labels != NO_LABEL for labels in by_head], axis=0)
        if not labelled.all():
            console.print(f"{int((~labelled).sum())} samples without a label are left out")
        return cls(root, samples.take(np.flatnonzero(labelled)))


class _Feed:
    """The batches of an epoch: a fresh view of every sample."""

    def __init__(
        self,
        run: Run,
        recipe: TeacherRecipe,
        model: VideoModel,
        source: Labelled,
        device: torch.device,
        decoders: int,
    ) -> None:
        self._seed, self._recipe = run.teach.seed, recipe
        self._device, self._decoders = device, decoders
        self._rule = ViewRule(run.teach.seed, run.teach.scale, model.clip.span_sec, flip=False)
        self._dataset = ClipDataset(source.root, source.samples, [model.clip])
        self._size = model.clip.size
        self._labels = source.samples.labels(NO_LABEL)
        self._ids = source.samples.table["sample_id"].to_pylist()
        self._most = run.extract.max_failed_share
        self._unreadable: set[int] = set()
        self.steps = steps_in_epoch(len(self._ids), recipe.batch_size)

    def __call__(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """The batches from `first` on; unreadable videos are told once, and left out.

        Raises:
            TeachError: not one can be read, or more than `extract.max_failed_share` cannot.
        """
        recipe, used = self._recipe, 0
        order = epoch_batches(
            rows=len(self._ids), batch_size=recipe.batch_size, seed=self._seed, epoch=epoch
        )
        view = DrawnViews(self._rule, (epoch,))
        requests: list[list[Request]] = [[(int(row), view) for row in rows] for rows in order]
        mixing = np.random.default_rng([self._seed, epoch, 1])  # the order has (seed, epoch)
        mixes: list[Mix | None] = [None] * len(order)
        if recipe.mixup or recipe.cutmix:
            mixes = [
                draw_mix(mixing, mixup=recipe.mixup, cutmix=recipe.cutmix, size=self._size)
                for _ in order
            ]
        reads_of = iterate(self._dataset, requests[first:], self._decoders)
        for number, reads in enumerate(reads_of, start=first):
            good = [read for read in reads if read.clips is not None]
            self._note([read for read in reads if read.clips is None])
            if not good:
                continue
            used += len(good)
            rows = np.array([read.row for read in good])
            yield Batch(
                names=[self._ids[row] for row in rows],
                clips=torch.from_numpy(_clips(good)).to(self._device),
                labels={
                    head: torch.from_numpy(labels[rows]).to(self._device)
                    for head, labels in self._labels.items()
                },
                mix=mixes[number],
                number=number,
            )
        if not used and not first:
            raise TeachError(
                f"not one of {len(self._ids)} videos to train on can be read; the reasons stand "
                "above. `dualkd prepare --probe` leaves unreadable ones out of the table"
            )

    def _note(self, bad: list[Read]) -> None:
        for read in bad:
            if read.row not in self._unreadable:
                console.print(f"left out of the training: {self._ids[read.row]}: {read.error}")
                self._unreadable.add(read.row)
        if bad and len(self._unreadable) > self._most * len(self._ids):
            raise TeachError(
                f"{len(self._unreadable)} of {len(self._ids)} videos to train on cannot be read so "
                f"far, more than extract.max_failed_share {self._most:.0%} allows; the last one: "
                f"{bad[-1].error}. `dualkd prepare --probe` leaves them out of the table"
            )


def train_teacher(
    run: Run,
    role: str,
    source: Labelled,
    validation: Labelled | None,
    device: torch.device,
    decoders: int,
) -> None:
    """Train one teacher, going on from its checkpoint if there is one, and write its weights.

    Below `outputs/<dataset>/teach/<role>/` lie `last.safetensors`, `best.safetensors` if there is a
    validation split, and `checkpoint.pt`; of a finished training it is kept until
    `forget_checkpoint`, so that the teacher is not trained again while the other one is not done.

    Raises:
        pipeline.resuming.CheckpointError: the checkpoint belongs to another training.
        pipeline.objective.TrainingError: the loss is not finite, or an option does not fit.
        stages.scoring.ScoringError: not one video of the validation split has all labels, or can be
            read.
    """
    teacher: Teacher = getattr(run.teach, role)
    recipe, out = teacher.train, run.outputs / "teach" / role
    model = _starting_model(run, teacher, source.samples).to(device)
    belongs_to = _belongs_to(run, teacher, model, source, validation, device)
    feed = _Feed(run, recipe, model, source, device, decoders)
    training = start_training(
        Learner(model),
        recipe,
        feed.steps,
        layer_decay=recipe.layer_decay,
        decay_positions=recipe.decay_positions,
    )
    checkpoint = _checkpoint(run, role)
    past, steps_before = go_on(role, checkpoint, training, belongs_to, feed.steps)
    started = time.perf_counter()
    with meter(f"training {role}", total=recipe.epochs * feed.steps, unit="steps") as counter:
        if steps_before:
            counter.advance(steps_before)

        def step_done() -> None:
            counter.advance()
            if training.steps_done % _CHECKPOINT_STEPS == 0:
                save_checkpoint(checkpoint, training, past, belongs_to)

        for log in train(
            training,
            recipe=recipe,
            method=Method(LABELS_ONLY, label_smoothing=recipe.label_smoothing),
            batches=feed,
            on_step=step_done,
        ):
            record: dict[str, Any] = {"epoch": log.epoch, **log.record}
            if validation is not None:
                record["top1"] = validation_top1(run, training.result, validation.samples, decoders)
            record["seconds"] = time.perf_counter() - started
            started = time.perf_counter()
            console.print(f"{role} epoch {log.epoch}: {json.dumps(record)}")
            facts = {"seed": run.teach.seed, "classes_sha256": source.samples.classes_sha256}
            keep_epoch(out, training, past, record, facts, run.teach.validation)
            save_checkpoint(checkpoint, training, past, belongs_to)  # last: what it tells of stands
            _write_logs(out, past)
    _write_logs(out, past)
    write_whole(Path(teacher.weights), (out / f"{recipe.keep}.safetensors").read_bytes())


def forget_checkpoint(run: Run, role: str) -> None:
    """Remove the checkpoint of a finished training: the next one begins anew."""
    _checkpoint(run, role).unlink(missing_ok=True)


def _checkpoint(run: Run, role: str) -> Path:
    return run.outputs / "teach" / role / "checkpoint.pt"


def _starting_model(run: Run, teacher: Teacher, samples: Samples) -> VideoModel:
    torch.manual_seed(run.teach.seed)
    model = create_model(teacher.model, samples.heads, dropout=teacher.train.dropout)
    if teacher.start is not None:
        given = load_weights(
            teacher.model, samples.heads, teacher.start, replace_head=teacher.new_head
        )
        model.net.load_state_dict(given.net.state_dict())
        torch.manual_seed(run.teach.seed)
    return model


def _belongs_to(
    run: Run,
    teacher: Teacher,
    model: VideoModel,
    source: Labelled,
    validation: Labelled | None,
    device: torch.device,
) -> dict[str, Any]:
    """All that the training depends on, plain JSON; a checkpoint is for just that."""
    recipe = teacher.train.model_dump(mode="json", exclude={"keep", "precision"})
    return {
        "dataset": run.dataset,
        "model": teacher.model,
        "heads": model.heads,
        "first_weights_sha256": weights_digest(model.net),
        "seed": run.teach.seed,
        "scale": list(run.teach.scale),
        "samples": {"count": len(source.samples), "sha256": source.samples.digest()},
        "validation": validation
        and {"split": run.teach.validation, "sha256": validation.samples.digest()},
        "train": recipe,
        "bf16": uses_bf16(teacher.train.precision, device),
    }


def _write_logs(out: Path, past: Past) -> None:
    """One JSON line per epoch beside the role's folder, and the same as CSV."""
    records = [{"role": out.name, **record} for record in past.records]
    write_json_lines(out.with_name(f"{out.name}.jsonl"), records)
    write_csv(out.with_name(f"{out.name}.csv"), pa.Table.from_pylist(past.records))


def _clips(reads: list[Read]) -> NDArray[np.uint8]:
    return np.concatenate([read.clips.clips[0] for read in reads if read.clips])
