"""What `export` proves of its files before anybody has them: backbone, parity, what 8 bits lose."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.export import ExportedProgram

from pipeline.clips import ClipDataset, in_batches, iterate
from pipeline.config import Run
from pipeline.exporting import export_onnx, traced
from pipeline.models import VideoModel, create_model
from pipeline.onnx_files import ExportedModel, count_operators, count_weights
from pipeline.protocols import CENTRE, PROTOCOLS, ProtocolViews
from pipeline.samples import Samples
from pipeline.views import normalise
from stages.progress import track
from stages.scoring import score

PARITY = 1e-4  # greatest difference of a logit from PyTorch's that is allowed, in float32
_PARITY_CLIPS = 64


class ExportError(ValueError):
    """A student cannot be exported, or its file is not what it should be; the message says why."""


def check_backbone(
    path: Path, program: ExportedProgram, model: VideoModel, folder: Path
) -> dict[str, Any]:
    """Prove that nothing of the training is left: both graphs are those of the plain backbone.

    The plain backbone is built anew by its name, takes the student's tensors, all of them and no
    more (exporters leave out what is 0, so values count), and is exported alike.

    Args:
        path: the ONNX file in float32.
        program: what `torch.export` made.
        model: what they were made of.
        folder: for the plain backbone's file.

    Returns:
        `export` and `plain`, each with `operators` (name → how many) and `weights` (how many
        numbers; norms are folded into convolutions) of ONNX, and `program_operators` and
        `parameters` of the program.

    Raises:
        ExportError: they differ.
    """
    plain = create_model(model.name, model.heads)
    plain.net.load_state_dict(model.net.state_dict(), strict=True)
    other, plain_program = folder / "plain.onnx", traced(plain)
    export_onnx(plain_program, other, {})
    sides = {"export": _counted(path, program), "plain": _counted(other, plain_program)}
    other.unlink()
    for what, number in sides["export"].items():
        if number != sides["plain"][what]:
            raise ExportError(
                f"the export is not the plain backbone {model.name}: of {what} it has {number}, "
                f"the backbone {sides['plain'][what]}. Nothing was published; this is a fault of "
                "dualkd or of the exporter's versions, not of the student"
            )
    return {"model": model.name, **sides}


def _counted(path: Path, program: ExportedProgram) -> dict[str, Any]:
    called = Counter(str(node.target) for node in program.graph.nodes if node.op == "call_function")
    return {
        "operators": count_operators(path),
        "weights": count_weights(path),
        "program_operators": dict(sorted(called.items())),
        "parameters": sum(tensor.numel() for tensor in program.parameters()),
    }


def check_parity(
    run: Run, samples: Samples, model: VideoModel, files: Mapping[str, ExportedModel], decoders: int
) -> dict[str, Any]:
    """Compare the logits of files with PyTorch's, on real clips spread over the split.

    Args:
        run: the config.
        samples: of the evaluation split, labelled.
        model: the network.
        files: in float32, by format.
        decoders: processes that decode.

    Returns:
        `split`, `clips`, `limit`, `largest_logit` and, by format, `max_difference`.

    Raises:
        ExportError: a difference is too large.
        stages.scoring.ScoringError: no clip can be read.
    """
    chosen = samples.take(_spread(len(samples), _PARITY_CLIPS))
    scored = score(
        {"pytorch": model, **files}, Path(run.prepare.root), chosen, decoders, 8, what="comparing"
    )
    wanted = scored.logits["pytorch"]
    found = {
        name: max(
            float(np.abs(of_head - wanted[head]).max())
            for head, of_head in scored.logits[name].items()
        )
        for name in files
    }
    for name, difference in found.items():
        if not difference <= PARITY:  # nor where it is not a number
            raise ExportError(
                f"{name}: logits differ by up to {difference:.2g} from PyTorch's on "
                f"{len(scored.rows)} clips of {run.evaluate.split}, more than {PARITY:.0e}. "
                "Nothing was published"
            )
    return {
        "split": run.evaluate.split,
        "clips": len(scored.rows),
        "limit": PARITY,
        "largest_logit": max(float(np.abs(of_head).max()) for of_head in wanted.values()),
        "max_difference": found,
    }


def calibration_clips(
    run: Run, samples: Samples, model: VideoModel, decoders: int
) -> Iterator[NDArray[np.float32]]:
    """Normalised clips (1, 3, T, S, S) of the training split, centre views, spread over it.

    Args:
        run: its `distill.splits` and `export.calibration` say which and how many.
        samples: the whole table.
        model: what they are cut for.
        decoders: processes that decode.

    Raises:
        ExportError: not one can be read.
    """
    training = samples.of_splits(run.distill.splits)
    rows = _spread(len(training), run.export.calibration)
    dataset = ClipDataset(Path(run.prepare.root), training, [model.clip], test_crop=True)
    views = ProtocolViews(CENTRE, model.clip.span_sec)
    batches = in_batches(dataset.by_video([(int(row), views) for row in rows]), 8)
    reads = iterate(dataset, batches, decoders)
    read, error = 0, "the split is empty"
    for batch in track(reads, total=len(batches), what="calibrating", unit="batches"):
        for one in batch:
            if one.clips is None:
                error = str(one.error)
                continue
            read += 1
            yield normalise(torch.from_numpy(one.clips.clips[0]), model.clip).contiguous().numpy()
    if not read:
        raise ExportError(
            f"not one of {len(rows)} clips of {', '.join(run.distill.splits)} can be read to "
            f"calibrate 8 bits: {error}. `--formats onnx,pt2` leaves them out"
        )


def compare_precisions(
    run: Run,
    samples: Samples,
    files: Mapping[str, ExportedModel],
    decoders: int,
    batch_size: int,
) -> dict[str, Any]:
    """Score the model in float32 and in 8 bits on the same views of the evaluation split.

    Args:
        run: the config.
        samples: of that split, labelled.
        files: `fp32` and `int8`.
        decoders: processes that decode.
        batch_size: clips in one forward pass.

    Returns:
        `split`, `protocol`, `videos`; the accuracies of each; `loss_points`, of top-1, negative
        where 8 bits do better; `changed_answers`, of videos, and how many of these were right in
        float32 alone (`lost`) and in 8 bits alone (`won`).

    Raises:
        stages.scoring.ScoringError: too many videos cannot be read.
    """
    scored = score(
        files,
        Path(run.prepare.root),
        samples,
        decoders,
        batch_size,
        protocol=PROTOCOLS[run.evaluate.protocol],
        max_failed_share=run.extract.max_failed_share,
        what="scoring 8 bits",
    )
    accuracies = {name: scored.accuracies(name) for name in files}
    right, answers = {}, {}
    for name in files:
        # Of several heads the best tuple is that of each head's best.
        answers[name] = np.stack([one.argmax(axis=1) for one in scored.logits[name].values()])
        right[name] = (answers[name] == np.stack(list(scored.labels.values()))).all(axis=0)
    loss = 100 * (accuracies["fp32"]["top1"] - accuracies["int8"]["top1"])
    return {
        "split": run.evaluate.split,
        "protocol": run.evaluate.protocol,
        "videos": len(scored.rows),
        **accuracies,
        "loss_points": round(loss, 6),
        "changed_answers": int((answers["fp32"] != answers["int8"]).any(axis=0).sum()),
        "lost": int((right["fp32"] & ~right["int8"]).sum()),
        "won": int((right["int8"] & ~right["fp32"]).sum()),
    }


def _spread(available: int, wanted: int) -> NDArray[np.int64]:
    """Rows spread evenly over all: tables are often in the order of their classes."""
    return np.unique(np.linspace(0, available - 1, min(wanted, available)).round().astype(np.int64))
