"""Stage `evaluate`: both teachers, the baseline and the student on the same test clips."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.config import Run
from pipeline.config_prepare import PrepareEpic100
from pipeline.models import VideoModel, count_flops, count_parameters
from pipeline.protocols import PROTOCOLS
from pipeline.samples import Samples, read_samples
from pipeline.subsets import read_subsets
from pipeline.weights import weights_digest
from stages.distill import load_students
from stages.evaluation_figures import (
    Calibrations,
    Figures,
    all_figures,
    bootstrap_facts,
    calibrations,
)
from stages.evaluation_files import class_rows, confusion_rows, write_answers, write_tables
from stages.evaluation_table import show
from stages.files import write_json
from stages.scoring import Scored, labelled, score
from stages.teachers import load_teachers


def evaluate(run: Run, *, device: torch.device, decoders: int, batch_size: int) -> None:
    """Score all four on the views of the config's protocol; write metrics, answers and tables."""
    samples = labelled(read_samples(run.samples_path).of_splits([run.evaluate.split]))
    subsets = _subsets(run, samples)
    protocol = PROTOCOLS[run.evaluate.protocol]
    models = load_teachers(run, samples, device).by_role() | load_students(run, samples)
    models = {role: model.to(device) for role, model in models.items()}
    scored = score(
        models,
        Path(run.prepare.root),
        samples,
        decoders,
        batch_size,
        protocol=protocol,
        max_failed_share=run.extract.max_failed_share,
    )
    videos = samples.take(scored.rows).table["path"].to_pylist()
    calibrated = calibrations(scored, videos)
    figures = all_figures(
        scored, calibrated, videos, {name: of[scored.rows] for name, of in subsets.items()}
    )
    gain = {name: figures["student"].pop(name) for name in ("gain_top1", "gain_top1_interval")}
    metrics: dict[str, Any] = {
        "split": run.evaluate.split,
        "protocol": run.evaluate.protocol,
        "views": protocol.views,
        "videos": len(videos),
        "unreadable": len(samples) - len(videos),
        **_networks(models, scored, figures),
        **gain,
        "bootstrap": bootstrap_facts(videos),
    }
    _write(run.outputs / "evaluate", metrics, samples, scored, calibrated)


def _write(
    out: Path,
    metrics: dict[str, Any],
    samples: Samples,
    scored: Scored,
    calibrated: Calibrations,
) -> None:
    """Write all files, then show what is in them."""
    by_class, confusions = class_rows(samples, scored), confusion_rows(samples, scored)
    write_json(out / "metrics.json", metrics)
    write_answers(out, samples, scored)
    write_tables(out, samples, scored, calibrated, by_class, confusions)
    show(metrics, list(scored.logits), by_class, confusions)


def _networks(
    models: Mapping[str, VideoModel], scored: Scored, figures: Mapping[str, Figures]
) -> dict[str, Figures]:
    """By role which network it is, how good, and at what cost."""
    by_name = {model.name: model for model in models.values()}  # the students share one
    flops = {name: count_flops(model) for name, model in by_name.items()}
    return {
        role: {
            "model": model.name,
            **figures[role],
            "weights_sha256": weights_digest(model.net),
            "parameters": count_parameters(model),
            "flops": flops[model.name],
            "ms_per_clip": 1000 * scored.seconds[role] / scored.clips,
        }
        for role, model in models.items()
    }


def _subsets(run: Run, samples: Samples) -> dict[str, NDArray[np.bool_]]:
    """Which samples are scored on their own too; only EPIC-KITCHENS-100 has any.

    Raises:
        pipeline.samples.SamplesError: `prepare` wrote none, or of other samples.
    """
    if not isinstance(run.prepare, PrepareEpic100) and not run.subsets_path.is_file():
        return {}  # samples tables that were written before there were subsets
    return read_subsets(run.subsets_path, samples)
