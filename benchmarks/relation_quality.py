"""How near are a student's relations to those that RKD asks for? On the training views.

Why RKD gains or does not: it can only teach distances and angles that the other terms do not teach
anyway. The relations are the ViT's, of its cached pooled features in batches of the training's
size; students are those that the evidence trained, in training mode, as the loss saw them.

    python benchmarks/relation_quality.py main-labels/seed-0 main-datw/seed-0 main-datw_rkd/seed-0
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from cache import open_cache
from evidence_plan import changed
from evidence_settings import SETTINGS
from making import print_table
from pipeline.config import Run
from pipeline.config_file import load_config
from pipeline.losses import rkd_angle_loss, rkd_distance_loss
from pipeline.objective import NO_LABEL
from pipeline.samples import samples_from_table
from pipeline.weights import load_weights
from stages.stored_clips import clip_field
from stages.teachers import features
from target_quality import read_views


def line(name: str, pooled: Iterable[Tensor], vit: Sequence[Tensor]) -> list[str]:
    """What RKD would say of some features, batch by batch.

    Args:
        name: whose they are.
        pooled: (B, D) of each batch.
        vit: (B, C) of the same.
    """
    pairs = list(zip(pooled, vit, strict=True))
    distance, angle = (
        torch.stack([loss(student=ours, teacher=theirs) for ours, theirs in pairs]).mean().item()
        for loss in (rkd_distance_loss, rkd_angle_loss)
    )
    together = torch.stack(
        [torch.corrcoef(torch.stack([torch.pdist(one) for one in pair]))[0, 1] for pair in pairs]
    )
    loss = distance + 2 * angle
    return [name, *(f"{one:.4f}" for one in (distance, angle, loss)), f"{together.mean():.2f}"]


def pooled_of(run: Run, heads: dict[str, int], student: str, batches: Sequence[Tensor]) -> Tensor:
    """A student's pooled features of batches of clips, (batches, B, D), in training mode."""
    name = student.partition("/")[0]
    run = changed(run, SETTINGS[name]) if name in SETTINGS else run  # it may be another network
    weights = run.outputs / "evidence" / student / "last.safetensors"
    model = load_weights(run.distill.student, heads, weights).train()
    with torch.no_grad():
        return torch.stack([features(model, clips, "fp32").pooled for clips in batches])


def main() -> None:
    """Read, compare and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("students", nargs="*", help="below evidence/")
    parser.add_argument("--dataset", default="figures_hard")
    options = parser.parse_args()
    run = load_config(Path("configs") / f"{options.dataset}.yaml")
    cache = open_cache(run.cache_path, blocks=True)
    samples = samples_from_table(cache.samples, cache.place)
    clips = clip_field(run.distill.student)
    read = read_views(cache, ["vit/pooled", "vit/logits/action", clips], 1)
    labels = torch.from_numpy(samples.labels(NO_LABEL)["action"])
    draw = torch.Generator().manual_seed(0)
    size = min(run.distill.train.batch_size, len(labels))
    order = torch.randperm(len(labels), generator=draw)
    batches = order[: len(order) // size * size].view(-1, size)
    vit = [read["vit/pooled"][rows].float() for rows in batches]
    classes = torch.nn.functional.one_hot(labels, samples.heads["action"]).float()
    drawn = torch.randn(classes.shape, generator=draw)  # also tells equal rows apart
    known = {
        "the ViT's own logits": read["vit/logits/action"].float(),
        "the labels, and nothing else": classes + 1e-3 * drawn,
        "drawn numbers": drawn,
    }
    lines = [line(name, (of[rows] for rows in batches), vit) for name, of in known.items()]
    for student in options.students:
        pooled = pooled_of(
            run, dict(samples.heads), student, [read[clips][rows] for rows in batches]
        )
        lines.append(line(f"`{student}`", pooled, vit))
    print(f"{batches.numel()} training views in batches of {size}, beside the ViT's features.\n")
    head = ["features", "distances", "angles", "distances + 2 · angles", "correlation of distances"]
    print_table(head, lines)


if __name__ == "__main__":
    main()
