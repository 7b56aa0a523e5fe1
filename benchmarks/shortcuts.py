"""Does the hard set have shortcuts? A network without order, or with one frame, beside its bound.

The CNN teacher's network learns the same clips of the teachers' pool three times: as they are, with
their frames in a random order, and with one frame in the place of all. The construction says how
much the last two can know at most: actions of one group share the distribution of their frames, so
that without their order one can only guess among them.

    python benchmarks/shortcuts.py --start configs/figures_hard/cnn.safetensors
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from making import machine, print_table
from pipeline.clips import ClipDataset, DrawnViews, Request, in_batches, iterate
from pipeline.config import Run
from pipeline.config_file import load_config
from pipeline.config_training import TeacherRecipe
from pipeline.datasets import figures
from pipeline.datasets.figure_phrases import PHRASES, order_blind_bound, single_frame_bound
from pipeline.learner import Learner
from pipeline.models import Features, VideoModel, create_model, model_entry
from pipeline.objective import LABELS_ONLY, NO_LABEL, Batch, Method
from pipeline.optimising import start_training
from pipeline.samples import Samples, build_samples, read_samples
from pipeline.training import epoch_batches, steps_in_epoch, train
from pipeline.views import ViewRule
from pipeline.weights import load_weights
from stages.prepare import render_split
from stages.scoring import Scored, score
from stages.teach import pool_seed

NET = "pytorchvideo/x3d_tiny"
CLASSES = figures.HARD.classes


class Without(VideoModel):
    """A network that is shown clips without their order, or one frame of each in the place of all.

    The order is a random one for each clip, in training and afterwards; the single frame is a
    random one in training, else the one in the middle.
    """

    def __init__(self, inner: VideoModel, *, single: bool) -> None:
        super().__init__(inner.name, inner.family, inner.clip, inner.heads, inner.net)
        self.pooled_channels, self.map_channels = inner.pooled_channels, inner.map_channels
        self.of_inner, self.single = inner.features, single

    def features(self, clips: Tensor) -> Features:
        """All outputs of one forward pass."""
        count, _, frames = clips.shape[:3]
        order = torch.rand(count, frames).argsort(dim=1)
        if self.single:
            order = order[:, :1] if self.training else torch.full((count, 1), frames // 2)
            order = order.expand(count, frames)
        shown = clips.transpose(1, 2)[torch.arange(count)[:, None], order]
        return self.of_inner(shown.transpose(1, 2).contiguous())


def set_of_models(
    heads: Mapping[str, int], dropout: float, start: Path | None
) -> dict[str, VideoModel]:
    """The three, each with the same first weights."""
    made: dict[str, VideoModel] = {}
    for name in ("in order", "in no order", "single frame"):
        torch.manual_seed(0)
        model = create_model(NET, heads, dropout=dropout)
        if start is not None:
            model.net.load_state_dict(load_weights(NET, heads, start).net.state_dict())
        made[name] = model if name == "in order" else Without(model, single=name[0] == "s")
    return made


def pool_of(run: Run, videos: int) -> Samples:
    """The first videos of the teachers' pool; those that are not there are rendered."""
    rows = render_split(
        Path(run.prepare.root) / "pool",
        seed=pool_seed(run),
        split="pool",
        count=videos,
        of=figures.HARD,
    )
    return build_samples(run.dataset, {"action": list(CLASSES)}, rows)


class Clips:
    """Clips of some views of each sample in memory: an epoch takes a random view of each."""

    def __init__(self, run: Run, samples: Samples, views: int, batch_size: int) -> None:
        spec = model_entry(NET).clip
        rule = ViewRule(0, run.teach.scale, spec.span_sec, flip=False)
        dataset = ClipDataset(Path(run.prepare.root) / "pool", samples, [spec])
        chosen = DrawnViews(rule, tuple(range(views)))
        requests: list[Request] = [(row, chosen) for row in range(len(samples))]
        shape = (len(samples), views, spec.frames, spec.size, spec.size, 3)
        self.clips: NDArray[np.uint8] = np.zeros(shape, np.uint8)
        for reads in iterate(dataset, in_batches(requests, 64), 0):
            for read in reads:
                if read.clips is None:
                    raise ValueError(f"a rendered video cannot be read: {read.error}")
                self.clips[read.row] = read.clips.clips[0]
        self.labels = torch.from_numpy(samples.labels(NO_LABEL)["action"])
        self.batch_size = batch_size
        self.steps = steps_in_epoch(len(samples), batch_size)

    def __call__(self, epoch: int, first: int) -> Iterator[Batch]:
        """The batches of an epoch."""
        count, views = self.clips.shape[:2]
        order = epoch_batches(rows=count, batch_size=self.batch_size, seed=0, epoch=epoch)
        draws = np.random.default_rng([0, epoch])
        turns = draws.integers(views, size=(count,))
        for number, rows in enumerate(order[first:], start=first):
            clips = torch.from_numpy(self.clips[rows, turns[rows]])
            labels = {"action": self.labels[rows]}
            yield Batch([str(row) for row in rows], clips, labels, number=number)


def learn(model: VideoModel, clips: Clips, recipe: TeacherRecipe) -> float:
    """Train it; returns the minutes."""
    begun = time.perf_counter()
    torch.manual_seed(0)
    training = start_training(Learner(model), recipe, clips.steps)
    method = Method(LABELS_ONLY, label_smoothing=recipe.label_smoothing)
    for log in train(training, recipe=recipe, method=method, batches=clips):
        right = log.record["accuracy/action"]
        print(f"  epoch {log.epoch + 1}: {right:.1%} of the training clips", flush=True)
    return (time.perf_counter() - begun) / 60


def shares(scored: Scored, name: str) -> tuple[float, float, float]:
    """Of the videos: the right action; the right group; the right action where the group is."""
    answers = scored.logits[name]["action"].argmax(axis=1)
    labels = scored.labels["action"]
    names = [PHRASES[action].bag_group for action in CLASSES]
    groups: NDArray[np.int64] = np.array([names.index(name) for name in names])
    right = answers == labels
    right_group = groups[answers] == groups[labels]
    paired = np.bincount(groups)[groups[labels]] > 1
    known = right_group & paired
    within = right[known].sum() / max(known.sum(), 1)
    return float(right.mean()), float(right_group.mean()), float(within)


def main() -> None:
    """Train, score and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", default="figures_hard")
    parser.add_argument("--videos", type=int, default=4800, help="of the teachers' pool")
    parser.add_argument("--views", type=int, default=2, help="of each, kept in memory")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, help="that of the CNN teacher by default")
    parser.add_argument("--start", type=Path, help="weights to begin with; random by default")
    parser.add_argument("--only", default="in order,in no order,single frame")
    options = parser.parse_args()
    run = load_config(Path("configs") / f"{options.dataset}.yaml")
    changes = {"epochs": options.epochs, "batch_size": options.batch}
    if options.learning_rate is not None:
        changes["learning_rate"] = options.learning_rate
    recipe = run.teach.cnn.train.model_copy(update=changes)
    table = read_samples(run.samples_path)
    pool = pool_of(run, options.videos)
    clips = Clips(run, pool, options.views, options.batch)
    models = set_of_models(pool.heads, recipe.dropout, options.start)
    models = {name: model for name, model in models.items() if name in options.only.split(",")}
    minutes = {}
    for name, model in models.items():
        print(f"{name}:", flush=True)
        minutes[name] = learn(model, clips, recipe)
    bounds = {"in no order": order_blind_bound(), "single frame": single_frame_bound()}
    print(
        f"{NET}, {options.videos} videos × {options.views} views of the pool, {options.epochs} "
        f"epochs from {options.start or 'random weights'}; {len(CLASSES)} actions, chance "
        f"{1 / len(CLASSES):.1%}; {machine()}.\n"
    )
    rows = []
    for split in [name for name in ("val", "test") if name in table.splits()]:
        samples = table.of_splits([split])
        scored = score(models, Path(run.prepare.root), samples, 0, 32)
        for name in models:
            right, group, within = (f"{share:.1%}" for share in shares(scored, name))
            bound = f"{bounds[name]:.1%}" if name in bounds else "100 %"
            rows.append([name, split, right, bound, group, within, f"{minutes[name]:.0f}"])
    head = ["the network sees", "split", "top-1", "at most", "right group", "of the pair", "min"]
    print_table(head, rows)


if __name__ == "__main__":
    main()
