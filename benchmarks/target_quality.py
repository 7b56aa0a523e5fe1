"""How good is what the student is told? The target of each weighting, on the training views.

Why a weighting gains or does not: it can only choose where the teachers differ. The targets are
read from the cache; DATW also looks at a student, which is one that the evidence trained.

    python benchmarks/target_quality.py --student main-uniform/seed-0
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cache import TeacherCache, open_cache
from making import print_table
from pipeline.config import Run
from pipeline.config_file import load_config
from pipeline.losses import blend_targets, teacher_weights
from pipeline.objective import NO_LABEL
from pipeline.reference_losses import entropy_weights
from pipeline.samples import samples_from_table
from pipeline.weights import load_weights
from stages.stored_clips import clip_field
from stages.teachers import features


def read_views(cache: TeacherCache, fields: list[str], views: int) -> dict[str, Tensor]:
    """Some fields of all samples, view after view, (views · samples, …)."""
    samples = range(cache.num_samples)
    parts = [cache.read(samples, [view] * len(samples), fields) for view in range(views)]
    return {
        name: torch.from_numpy(np.concatenate([part[name] for part in parts])) for name in fields
    }


def logits_of(run: Run, heads: dict[str, int], weights: Path, clips: Tensor) -> Tensor:
    """A student's answers to its clips, (n, K)."""
    model = load_weights(run.distill.student, heads, weights)
    parts = [clips[first : first + 64] for first in range(0, len(clips), 64)]
    return torch.cat([features(model, part, "fp32").logits["action"] for part in parts])


def line(name: str, weights: Tensor, vit: Tensor, cnn: Tensor, labels: Tensor) -> list[str]:
    """What one weighting makes of the two teachers.

    Args:
        name: of the weighting.
        weights: (n, 2) of the teachers.
        vit: (n, K) logits.
        cnn: (n, K) logits.
        labels: (n,).
    """
    target = blend_targets(weights=weights, vit_logits=vit, cnn_logits=cnn)
    right = target.argmax(dim=1) == labels
    one_right = (vit.argmax(dim=1) == labels) ^ (cnn.argmax(dim=1) == labels)
    sure = target.softmax(dim=1).gather(1, labels[:, None])
    leads = (weights[:, 0] > weights[:, 1]).float()
    return [
        name,
        f"{right.float().mean():.1%}",
        f"{right[one_right].float().mean():.1%}",
        f"{sure.mean():.3f}",
        f"{weights[:, 0].mean():.2f} ± {weights[:, 0].std():.2f}",
        f"{leads.mean():.0%}",
    ]


def main() -> None:
    """Read, weigh and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", default="figures_hard")
    parser.add_argument("--student", default="main-uniform/seed-0", help="below evidence/")
    parser.add_argument("--views", type=int, default=4)
    options = parser.parse_args()
    run = load_config(Path("configs") / f"{options.dataset}.yaml")
    cache = open_cache(run.cache_path, blocks=True)
    samples = samples_from_table(cache.samples, cache.place)
    clips = clip_field(run.distill.student)
    read = read_views(cache, ["vit/logits/action", "cnn/logits/action", clips], options.views)
    vit, cnn = (read[f"{role}/logits/action"].float() for role in ("vit", "cnn"))
    labels = torch.from_numpy(samples.labels(NO_LABEL)["action"]).repeat(options.views)
    weights = run.outputs / "evidence" / options.student / "last.safetensors"
    student = logits_of(run, dict(samples.heads), weights, read[clips])

    half = torch.full((len(labels), 2), 0.5)
    right = [of.argmax(dim=1) == labels for of in (vit, cnn)]
    best = torch.stack(right, dim=1).float() + 1e-6
    ways = {
        "`vit`": half.new_tensor([1.0, 0.0]).expand_as(half),
        "`cnn`": half.new_tensor([0.0, 1.0]).expand_as(half),
        "`uniform`": half,
        "`entropy`": entropy_weights(vit_logits=vit, cnn_logits=cnn),
        "`datw`, a student that knows nothing": teacher_weights(
            student_logits=torch.zeros_like(student), vit_logits=vit, cnn_logits=cnn
        ),
        f"`datw`, the student {options.student}": teacher_weights(
            student_logits=student, vit_logits=vit, cnn_logits=cnn
        ),
        "the same student, `datw_centred`": teacher_weights(
            student_logits=student, vit_logits=vit, cnn_logits=cnn, centred=True
        ),
        "whoever is right leads": best / best.sum(dim=1, keepdim=True),
    }
    both, neither = (right[0] & right[1]).float(), (~right[0] & ~right[1]).float()
    print(
        f"{len(labels)} training views; both teachers are right on {both.mean():.1%}, neither on "
        f"{neither.mean():.1%}, one of them on {1 - both.mean() - neither.mean():.1%}; the "
        f"student on {(student.argmax(dim=1) == labels).float().mean():.1%}.\n"
    )
    means = [
        f"{name} {of.mean():.2f}" for name, of in (("ViT", vit), ("CNN", cnn), ("student", student))
    ]
    print(
        f"Mean logit: {', '.join(means)}; an answer is the same without it, DATW's cosine is not.\n"
    )
    head = ["weighting", "right", "right where one is", "p(label)", "ω of the ViT", "ViT leads"]
    print_table(head, [line(name, of, vit, cnn, labels) for name, of in ways.items()])


if __name__ == "__main__":
    main()
