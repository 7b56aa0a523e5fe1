"""Stage `teach`: the two teachers, loaded or trained, and scored before they are relied on."""

from __future__ import annotations

from pathlib import Path

import torch

from pipeline.config import Run
from pipeline.config_prepare import PrepareFigures
from pipeline.datasets import figures
from pipeline.samples import Samples, build_samples, read_samples
from pipeline.weights import PUBLISHED, weights_digest
from stages.files import write_json
from stages.prepare import render_split
from stages.progress import console
from stages.scoring import labelled, score
from stages.teacher_training import Labelled, TeachError, forget_checkpoint, train_teacher
from stages.teachers import load_added, load_teachers

_POOL_SEED_OFFSET = 1_000_003  # the pool never shares a video with the splits


def teach(
    run: Run, *, train_them: bool, only: str | None, device: torch.device, decoders: int
) -> None:
    """Train the teachers if asked, then score both on the test split and write the scores.

    Raises:
        stages.teacher_training.TeachError: the config does not say on what to train, …
        pipeline.resuming.CheckpointError: an interrupted training was another one.
        pipeline.weights.WeightsError: a teacher's weights are missing, or of another network.
    """
    samples = read_samples(run.samples_path)
    if train_them:
        roles = [role for role in ("vit", "cnn") if only in (None, role)]
        source = _training_samples(run, samples, roles)
        validation = None
        if run.teach.validation is not None:
            of_split = samples.of_splits([run.teach.validation])
            validation = Labelled.of(Path(run.prepare.root), of_split)
        for role in roles:
            train_teacher(run, role, source, validation, device, decoders)
        for role in roles:
            forget_checkpoint(run, role)
    test = labelled(samples.of_splits([run.evaluate.split]))
    models = load_teachers(run, samples, device).by_role() | load_added(run, samples, device)
    scored = score(
        models,
        Path(run.prepare.root),
        test,
        decoders,
        batch_size=32,
        max_failed_share=run.extract.max_failed_share,
    )
    scores, videos, digest = {}, len(scored.rows), test.digest()
    for role, model in models.items():
        scores[role] = {
            "model": model.name,
            "weights_sha256": weights_digest(model.net),
            **scored.accuracies(role),
            "split": run.evaluate.split,
            "samples_sha256": digest,
            "videos": videos,
            "unreadable": len(test) - videos,
        }
        console.print(f"{role} {model.name}: top-1 {scores[role]['top1']:.1%}")
    write_json(run.outputs / "teach.json", scores)


def pool_seed(run: Run) -> int:
    """From which the pool is rendered."""
    return run.teach.seed + _POOL_SEED_OFFSET


def _training_samples(run: Run, samples: Samples, roles: list[str]) -> Labelled:
    """What the config's `teach.pool` or `teach.splits` says.

    Raises:
        TeachError: it says neither, or a teacher's weights are not a file to be written.
        pipeline.samples.SamplesError: the table lacks a split.
    """
    root = Path(run.prepare.root)
    for role in roles:
        if getattr(run.teach, role).weights == PUBLISHED:
            raise TeachError(
                f"teach.{role}.weights is {PUBLISHED!r}, which training cannot write: name a file "
                f"there, and the weights to begin with in teach.{role}.start"
            )
    if run.teach.splits is not None:
        return Labelled.of(root, samples.of_splits(run.teach.splits))
    if run.teach.pool is None or not isinstance(run.prepare, PrepareFigures):
        raise TeachError(
            "the config does not say what teachers are trained on: name splits in teach.splits, "
            "as [train], or with the source 'figures' how many videos to render in teach.pool"
        )
    of = figures.SETS[run.prepare.set]
    rows = render_split(
        root / "pool", seed=pool_seed(run), split="pool", count=run.teach.pool, of=of
    )
    pool = build_samples(run.dataset, {"action": list(of.classes)}, rows)
    return Labelled.of(root / "pool", pool)
