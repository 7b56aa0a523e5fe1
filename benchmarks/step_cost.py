"""A training step of the student: what the method adds to labels alone, and what the cache saves.

The real loop on a real cache of random values with the student's stored clips, at full size. Ways
take turns of some steps each; a step is timed whole, with the wait for its batch. The teachers of
the online step run as in configs/k400.yaml, over clips that lie ready: decoding is not counted.

With `--loading`: the time that is waited for clips which are stored, or decoded from videos made
here (10 s of 340×256 H.264).

    python benchmarks/step_cost.py                # about 10 minutes on two cores
    python benchmarks/step_cost.py --loading --warm 3 --steps 6 --turns 2
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from cache import CacheWriter, TeacherCache, create_cache, open_cache
from decode import make_video
from making import identity, machine, own_arrays, print_table
from pipeline.branch import StructureDiscrepancyBranch
from pipeline.config import Run
from pipeline.config_file import load_config
from pipeline.config_training import Weights
from pipeline.counting import count_flops, feature_shapes, multiply_adds
from pipeline.identity import view_rule
from pipeline.learner import Answer, make_learner
from pipeline.models import Features, create_model
from pipeline.objective import LABELS_ONLY, Batch, TeacherRows, loss_terms, total_loss
from pipeline.optimising import start_training, uses_bf16
from pipeline.projection import Projection
from pipeline.samples import Sample, Samples, build_samples
from pipeline.training import train
from pipeline.views import ClipSpec, draw_view
from stages.feed import Feed, method_of, sizes_of, used_part
from stages.fields import cache_fields
from stages.rows import Networks, stored_values
from stages.stored_clips import clip_field
from stages.teachers import Teachers, features, placed

ROOT = Path(__file__).parents[1]
MOST = 1.05  # of the supervised step
ALL_TERMS = Weights(kd=1.0, sdd=8.0, rkd=0.03)  # as in configs/k400.yaml
WITHOUT_BRANCH = Weights(kd=1.0, sdd=0.0, rkd=0.03)
VIDEO = (340, 256)
CHUNK_SAMPLES = 64
REPEATS = 20  # of the terms alone
SUPERVISED, CACHED, BRANCH, ONLINE = (
    "labels only",
    "cached: kd, rkd",
    "cached: kd, rkd, sdd",
    "both teachers online: kd, rkd, sdd",
)


def set_up(options: argparse.Namespace, root: Path) -> Run:
    """configs/k400.yaml with what the options ask for."""
    run = load_config(ROOT / "configs" / "k400.yaml")
    dim, *grid = options.residual
    recipe = run.distill.train.model_copy(
        update={"batch_size": options.batch, "epochs": options.turns}
    )
    distill = {"student": options.student, "train": recipe, "views": 1}
    projection = run.extract.projection.model_copy(update={"dim": dim, "grid": tuple(grid)})
    return run.model_copy(
        update={
            "prepare": run.prepare.model_copy(update={"root": str(root)}),
            "extract": run.extract.model_copy(update={"projection": projection}),
            "distill": run.distill.model_copy(update=distill),
        }
    )


def set_weights(run: Run, weights: Weights) -> Run:
    """The same with another loss."""
    return run.model_copy(update={"distill": run.distill.model_copy(update={"weights": weights})})


def random_clips(count: int, spec: ClipSpec, device: torch.device) -> torch.Tensor:
    """Clips (count, T, H, W, 3) uint8."""
    shape = (count, spec.frames, spec.size, spec.size, 3)
    return torch.randint(256, shape, dtype=torch.uint8, device=device)


def listed(count: int, classes: int) -> Samples:
    """So many samples, each with a video of its own."""
    names = [f"class {number}" for number in range(classes)]
    rows = [
        Sample(f"{row}", f"{row}.mp4", "train", {"action": row % classes}) for row in range(count)
    ]
    return build_samples("benchmark", {"action": names}, rows)


def write_cache(path: Path, run: Run, teachers: Teachers, options: argparse.Namespace) -> None:
    """One view of each sample: random values and clips, and records of views that can be cut."""
    samples = listed(options.batch * (options.warm + options.steps), options.classes)
    fields = cache_fields(run, samples, Networks(teachers, [run.distill.student]))
    writer: CacheWriter = create_cache(
        path,
        identity=identity(fields),
        provenance={"command": "benchmark"},
        samples=samples.table,
        fields=fields,
        views=1,
        chunk_samples=CHUNK_SAMPLES,
        projection={},
    )
    random, rule = np.random.default_rng(0), view_rule(run.extract.views)
    width, height = VIDEO
    for chunk in range(writer.num_chunks):
        rows = writer.sample_range(chunk)
        arrays = own_arrays(rows, 1)
        drawn = [
            draw_view(
                rule,
                sample_id=f"{row}",
                index=0,
                start_sec=0.0,
                stop_sec=options.seconds,
                width=width,
                height=height,
            )
            for row in rows
        ]
        arrays["views"] = np.stack([view.as_row() for view in drawn])[:, None]
        for field in fields:
            shape = (len(rows), 1, *field.shape)
            arrays[field.name] = (
                random.integers(256, size=shape, dtype=np.uint8)
                if field.name == clip_field(run.distill.student)
                else random.standard_normal(shape, np.float32).astype(field.dtype)
            )
        writer.write_chunk(chunk, arrays)
    writer.close()


def put_videos(root: Path, samples: int, seconds: float) -> None:
    """One video under the name of each sample, so that no two share a pass over it."""
    video = make_video(root / "video.mp4", size=VIDEO, seconds=seconds, group=250)
    for row in range(samples):
        (root / f"{row}.mp4").symlink_to(video)


class Turn(NamedTuple):
    """The steps of one turn.

    Attributes:
        seconds: of each.
        processor: seconds of each, of all threads together.
        waited: seconds of each in which no batch was there.
        memory: on a GPU, the most bytes that the turn took beside what stood.
    """

    seconds: list[float]
    processor: list[float]
    waited: list[float]
    memory: int


def clock(device: torch.device) -> float:
    """Seconds, once a device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


class Online:
    """What the teachers say of each batch, computed as `extract` does it.

    Attributes:
        seconds: that it took so far.
    """

    def __init__(self, run: Run, teachers: Teachers, batch: int) -> None:
        self._teachers, self._precision = teachers, run.extract.precision
        self._clips = [random_clips(batch, model.clip, teachers.device) for model in teachers]
        config = run.extract.projection
        vit, cnn = (torch.randn(model.map_channels, config.dim) for model in teachers)
        self._projection = Projection(
            "random", config.grid, vit.mean(1), vit, cnn.mean(1), cnn, scale=1.0, explained=0.0
        )
        self.seconds = 0.0

    def rows(self) -> TeacherRows:
        """Of one batch."""
        begun = time.perf_counter()
        pair = zip(self._teachers, self._clips, strict=True)
        vit, cnn = (features(model, clips, self._precision) for model, clips in pair)
        values = stored_values(vit, cnn, self._projection)
        rows = TeacherRows(
            vit_logits={head: values[f"vit/logits/{head}"].float() for head in vit.logits},
            cnn_logits={head: values[f"cnn/logits/{head}"].float() for head in cnn.logits},
            vit_pooled=values["vit/pooled"].float(),
            residual=values["residual"].float(),
        )
        self.seconds += time.perf_counter() - begun
        return rows


class Way:
    """One way to train, a turn at a time: the real loop, of which a turn is an epoch."""

    def __init__(
        self,
        run: Run,
        cache: TeacherCache,
        options: argparse.Namespace,
        *,
        teachers: Teachers | None = None,
        stored: bool = True,
        decoders: int = 0,
    ) -> None:
        self._device, self._warm = torch.device(options.device), options.warm
        recipe = run.distill.train
        fed = run if teachers is None else set_weights(run, LABELS_ONLY)  # its rows are computed
        self._feed = Feed(fed, cache, used_part(fed, cache), self._device, decoders)
        self._feed.stored = stored
        self._online = None if teachers is None else Online(run, teachers, recipe.batch_size)
        torch.manual_seed(run.distill.seed)
        model = create_model(run.distill.student, options.classes, dropout=recipe.dropout)
        learner = make_learner(model, run.distill.weights, sizes_of(run, cache)).to(self._device)
        self._training = start_training(learner, recipe, self._feed.steps)
        self._epochs = train(
            self._training,
            recipe=recipe,
            method=method_of(run),
            batches=self._batches,
            on_step=self._note,
        )
        self._marks: list[tuple[float, float, float]] = []

    def turn(self) -> Turn:
        """Some steps, of which the first ones do not count."""
        self._marks = []
        on_gpu, standing = self._device.type == "cuda", 0
        if on_gpu:
            torch.cuda.reset_peak_memory_stats(self._device)
            standing = torch.cuda.memory_allocated(self._device)
        next(self._epochs)
        memory = torch.cuda.max_memory_allocated(self._device) - standing if on_gpu else 0
        steps = np.diff(self._marks[self._warm - 1 :], axis=0)
        seconds, processor, waited = steps.T.tolist()
        return Turn(seconds, processor, waited, memory)

    def _batches(self, epoch: int, first: int) -> Iterator[Batch]:
        for batch in self._feed(epoch, first):
            yield batch if self._online is None else replace(batch, teachers=self._online.rows())

    def _note(self) -> None:
        """Once a step is done: its times."""
        seconds = clock(self._device)
        teaching = 0.0 if self._online is None else self._online.seconds
        waited = self._training.totals.waited - teaching
        self._marks.append((seconds, time.process_time(), waited))


def measure(ways: dict[str, Way], turns: int) -> dict[str, list[Turn]]:
    """The ways take turns, each time in another order: what a way leaves behind hits the next."""
    found: dict[str, list[Turn]] = {name: [] for name in ways}
    random = np.random.default_rng(0)
    for _ in range(turns):
        for name in random.permutation(list(ways)).tolist():
            found[name].append(ways[name].turn())
    return found


def terms_ms(run: Run, cache: TeacherCache, device: torch.device) -> float:
    """The loss and the parts beside the student alone, forward and backward; its outputs random."""
    *_, batch = Feed(run, cache, used_part(run, cache), device, 0)(0, 0)
    (head,), count = batch.labels, len(batch.names)
    model = create_model(run.distill.student, cache.fields[f"vit/logits/{head}"].shape[0])
    learner = make_learner(model, run.distill.weights, sizes_of(run, cache)).to(device)
    logits, pooled, feature_map = (
        torch.randn(count, *shape, device=device, requires_grad=True)
        for shape in ((model.heads[head],), (model.pooled_channels,), feature_shapes(model)[1])
    )
    method, seconds = method_of(run), []
    for _ in range(REPEATS):
        begun = clock(device)
        predicted = {name: part(feature_map) for name, part in learner.parts.items()}
        answer = Answer(Features({head: logits}, pooled, feature_map), predicted)
        terms, _ = loss_terms(answer, batch, method)
        total_loss(terms, method.weights).backward()  # type: ignore[no-untyped-call]
        seconds.append(clock(device) - begun)
    return 1000 * statistics.median(seconds)


def step_ms(turns: Sequence[Turn]) -> float:
    """The median over all steps."""
    return 1000 * statistics.median(second for turn in turns for second in turn.seconds)


def processor_ms(turns: Sequence[Turn]) -> float:
    """The median over all steps; it varies less where other work runs."""
    return 1000 * statistics.median(second for turn in turns for second in turn.processor)


def waited(turns: Sequence[Turn]) -> str:
    """The share of the time."""
    whole = sum(sum(turn.seconds) for turn in turns)
    return f"{sum(sum(turn.waited) for turn in turns) / whole:.1%}"


def ratios(turns: Sequence[Turn], reference: Sequence[Turn]) -> list[float]:
    """Of the medians in each turn: what else the machine does hits both alike."""
    return [step_ms([one]) / step_ms([other]) for one, other in zip(turns, reference, strict=True)]


def print_steps(found: dict[str, list[Turn]], on_gpu: bool) -> None:
    """The table and the requirements."""
    reference = found[SUPERVISED]
    processor = processor_ms(reference)
    rows, times = [], {}
    for name, turns in found.items():
        each = ratios(turns, reference)
        times[name] = statistics.median(each)
        row = [
            name,
            f"{step_ms(turns):.0f}",
            f"{times[name]:.3f}",
            f"{min(each):.2f} to {max(each):.2f}",
            f"{processor_ms(turns):.0f}",
            f"{processor_ms(turns) / processor:.3f}",
            waited(turns),
        ]
        if on_gpu:
            row.append(f"{max(turn.memory for turn in turns) / 1e6:.0f}")
        rows.append(row)
    head = ["", "ms a step", "/ labels only", "in the turns", "of processors", "/ labels only"]
    head.append("waited for batches")
    if on_gpu:
        head.append("MB at most, beside what stands")
    print_table(head, rows)
    print()
    for what, name in (
        ("distillation without the branch / supervised", CACHED),
        ("with all terms on", BRANCH),
    ):
        met = "met" if times[name] <= MOST else "MISSED"
        print(f"- {what}, at most {MOST}: {times[name]:.3f}, {met}")
    online = statistics.median(ratios(found[ONLINE], found[BRANCH]))
    print(f"- both teachers online / the same from the cache: {online:.2f}")


def print_terms(alone: dict[str, float], step: float) -> None:
    """What the terms add to those of labels only, where nothing else is timed."""
    for name in (CACHED, BRANCH):
        added = alone[name] - alone[SUPERVISED]
        print(f"- {name}: the terms alone add {added:.1f} ms, {added / step:.2%} of the step")


def print_flops(run: Run, teachers: Teachers, classes: int) -> None:
    """Of the forward passes, so that the branch can be judged on any device."""
    config = run.extract.projection
    student = create_model(run.distill.student, classes)
    branch = StructureDiscrepancyBranch(student.map_channels, config.dim, config.grid)
    _, shape = feature_shapes(student)
    student_flops = count_flops(student)
    branch_flops = multiply_adds(branch, torch.zeros(1, *shape))
    teacher_flops = sum(count_flops(model) for model in teachers)
    print(
        f"- GFLOPs of a clip, forward: the student {student_flops / 1e9:.3f}, the branch "
        f"{branch_flops / 1e9:.3f} ({branch_flops / student_flops:.1%} of it) on a map of "
        f"{'×'.join(map(str, shape))}, both teachers {teacher_flops / 1e9:.1f}"
    )


def print_loading(found: dict[str, list[Turn]], batch: int) -> None:
    """The second table."""
    rows = []
    for name, turns in found.items():
        taken = step_ms(turns)
        whole = sum(sum(turn.seconds) for turn in turns)
        clips = batch * sum(len(turn.seconds) for turn in turns) / whole
        rows.append([name, f"{taken:.0f}", f"{clips:.1f}", waited(turns)])
    print_table(["", "ms a step", "clips/s", "waited for batches"], rows)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--student", default="pytorchvideo/x3d_s")
    parser.add_argument("--vit", default="torchvision/mvit_v2_s")
    parser.add_argument("--cnn", default="pytorchvideo/x3d_m")
    parser.add_argument("--classes", type=int, default=400)
    parser.add_argument("--residual", type=int, nargs=4, default=(64, 2, 7, 7), help="D T H W")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch", type=int, help="64 on a GPU, 8 on a CPU")
    parser.add_argument("--steps", type=int, help="of a turn: 40 on a GPU, 1 on a CPU")
    parser.add_argument("--warm", type=int, help="before them: 10 on a GPU, 1 on a CPU")
    parser.add_argument("--turns", type=int, default=8)
    parser.add_argument("--loading", action="store_true", help="the second table")
    parser.add_argument("--decoders", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--seconds", type=float, default=10.0, help="of the videos")
    options = parser.parse_args()
    on_gpu = torch.device(options.device).type == "cuda"
    options.batch = options.batch or (64 if on_gpu else 8)
    options.steps = options.steps or (40 if on_gpu else 1)
    options.warm = options.warm or (10 if on_gpu else 1)
    with tempfile.TemporaryDirectory(prefix="dualkd-step-cost-") as temporary:
        folder = Path(temporary)
        run = set_up(options, folder)
        device = torch.device(options.device)
        pair = (create_model(name, options.classes).eval() for name in (options.vit, options.cnn))
        teachers = Teachers(*(placed(model, device) for model in pair))
        write_cache(folder / "cache", run, teachers, options)
        cache = open_cache(folder / "cache")
        if options.loading:
            put_videos(folder, cache.num_samples, options.seconds)
            ways = {"stored, raw": Way(run, cache, options)} | {
                f"decoded, --decoders {count}": Way(
                    run, cache, options, stored=False, decoders=count
                )
                for count in options.decoders
            }
        else:
            losses = {SUPERVISED: LABELS_ONLY, CACHED: WITHOUT_BRANCH, BRANCH: ALL_TERMS}
            runs = {name: set_weights(run, weights) for name, weights in losses.items()}
            ways = {name: Way(each, cache, options) for name, each in runs.items()}
            ways[ONLINE] = Way(runs[BRANCH], cache, options, teachers=teachers)
            alone = {name: terms_ms(each, cache, device) for name, each in runs.items()}
        found = measure(ways, options.turns)
    precision = "bf16" if uses_bf16(run.distill.train.precision, device) else "fp32"
    chip = torch.cuda.get_device_name() if on_gpu else torch.backends.cpu.get_cpu_capability()
    print(
        f"{options.student}, {precision}, on {options.device} ({chip}), batches of "
        f"{options.batch}; {options.turns} turns of {options.steps} steps, medians; torch "
        f"{torch.__version__}, {torch.get_num_threads()} threads; {machine()}.\n"
    )
    if options.loading:
        print_loading(found, options.batch)
        return
    print_steps(found, on_gpu)
    print_terms(alone, step_ms(found[SUPERVISED]))
    print_flops(run, teachers, options.classes)


if __name__ == "__main__":
    main()
