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

from cache import TeacherCache, open_cache
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


def pooled_of(
    run: Run, cache: TeacherCache, student: str, batches: Tensor, heads: dict[str, int]
) -> Tensor:
    """A student's pooled features of its own clips, (batches, B, D), in training mode.

    Args:
        run: of the dataset.
        cache: with the clips of the student's network.
        student: its folder below evidence/, which begins with its setting.
        batches: (batches, B) rows of the cache.
        heads: of the dataset.

    Raises:
        cache.CacheError: the cache has no clips of this network.
    """
    name = student.partition("/")[0]
    network = (changed(run, SETTINGS[name]) if name in SETTINGS else run).distill.student
    clips = read_views(cache, [clip_field(network)], 1)[clip_field(network)]
    weights = run.outputs / "evidence" / student / "last.safetensors"
    model = load_weights(network, heads, weights).train()
    with torch.no_grad():
        return torch.stack([features(model, clips[rows], "fp32").pooled for rows in batches])


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
    read = read_views(cache, ["vit/pooled", "vit/logits/action"], 1)
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
        pooled = pooled_of(run, cache, student, batches, dict(samples.heads))
        lines.append(line(f"`{student}`", pooled, vit))
    print(f"{batches.numel()} training views in batches of {size}, beside the ViT's features.\n")
    head = ["features", "distances", "angles", "distances + 2 · angles", "correlation of distances"]
    print_table(head, lines)


if __name__ == "__main__":
    main()
