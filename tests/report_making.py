"""A small fake run with every input of the report, and a reader of the page that it becomes."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import cache_making
from cache import Field, describe
from pipeline.config import Run
from pipeline.config_file import load_config
from pipeline.config_training import Weights
from pipeline.samples import Sample, build_samples, write_samples
from stages.files import write_csv, write_json

CONFIG = Path(__file__).parent.parent / "configs" / "demo.yaml"
CLASSES = ["bow", "<script>alert('x')</script>", "007"]
EPOCHS = 5
CACHE = Path("outputs/demo/cache")
CLIP = {"frames": 8, "stride": 6, "size": 48}
TEACHERS = {
    "vit": {"model": "torchvision/mvit_tiny", "weights_sha256": "a1" * 32, "clip": CLIP},
    "cnn": {"model": "pytorchvideo/x3d_tiny", "weights_sha256": "b2" * 32, "clip": CLIP},
}
FIELDS = (
    Field("vit/logits/action", ("class",), (3,), "float16"),
    Field("residual", ("channel", "time", "height", "width"), (2, 2, 2, 3), "float16"),
)
SCORES = {
    "vit": (0.9512, 0.9953, 715_438, 161_000_000, 21.43),
    "cnn": (0.9321, 0.9942, 318_214, 49_800_000, 14.92),
    "baseline": (0.7213, 0.9431, 81_230, 10_300_000, 5.26),
    "student": (0.8342, 0.9724, 81_230, 10_300_000, 5.17),
}


def load_run(videos: Path, terms: tuple[str, ...] = ("kd", "sdd", "rkd")) -> Run:
    """The demo's config with other videos, and with weight on some terms only."""
    run = load_config(CONFIG)
    weights = Weights(**{term: 0.5 * (term in terms) for term in ("kd", "sdd", "rkd")})
    return run.model_copy(
        update={
            "prepare": run.prepare.model_copy(update={"root": str(videos)}),
            "distill": run.distill.model_copy(update={"weights": weights}),
        }
    )


def make_run(videos: Path, *, terms: tuple[str, ...] = ("kd", "sdd", "rkd")) -> Run:
    """Write every input of the report below the working folder."""
    run = load_run(videos, terms)
    paths = sorted(path.relative_to(videos).as_posix() for path in videos.rglob("*.mp4"))
    rows = [
        Sample(f"video-{index}", path, "test", {"action": index})
        for index, path in enumerate(paths)
    ]
    write_samples(build_samples("demo", {"action": CLASSES}, rows), run.samples_path)
    write_evaluation(run.outputs / "evaluate")
    write_distillation(run, terms, paths)
    write_json(run.outputs / "teach.json", TEACHERS)
    return run


def write_evaluation(out: Path) -> None:
    """Three videos: the student gets all right, the baseline the first."""
    metrics: dict[str, Any] = {
        **{"split": "test", "protocol": "centre", "views": 1},
        **{"videos": 3, "unreadable": 2, "gain_top1": 0.1129},
        "gain_top1_interval": [0.031, 0.194],
        "bootstrap": {"samples": 1000, "seed": 0, "level": 0.95, "videos": 3},
    }
    columns: dict[str, Any] = {
        "sample_id": [f"video-{row}" for row in range(3)],
        "label": [0, 1, 2],
    }
    names = ("top1", "top5", "parameters", "flops", "ms_per_clip")
    for role, values in SCORES.items():
        metrics[role] = {
            "model": f"library/{role}",
            "weights_sha256": f"of {role}",
            **dict(zip(names, values, strict=True)),
            "top1_interval": [values[0] - 0.0314, values[0] + 0.0272],
            "top5_interval": [values[1] - 0.0301, 1.0],
            "mean_class_accuracy": values[0] - 0.0123,
            "mean_class_interval": [0.5, 1.0],
            **{"temperature": 1.37, "ece": 0.0812, "ece_calibrated": 0.0434},
        }
        if role in ("baseline", "student"):
            metrics[role] |= {"agreement_vit": 0.8123, "agreement_cnn": 0.7654}
        columns[f"{role}_answer"] = [0, 0, 0] if role == "baseline" else [0, 1, 2]
        columns[f"{role}_probability"] = np.array([0.9, 0.8, 0.7], np.float32)
    write_json(out / "metrics.json", metrics)
    pq.write_table(pa.table(columns), out / "answers.parquet")
    shares = {"vit": 1.0, "cnn": 1.0, "baseline": 0.25, "student": 0.75}
    rows = [
        {"class": CLASSES[0], "videos": 1, **shares, "gain": 0.5},
        {"class": CLASSES[1], "videos": 2, **shares, "baseline": 0.875, "gain": -0.125},
        {"class": CLASSES[2], "videos": 0, **dict.fromkeys(shares), "gain": None},
    ]
    write_csv(out / "by_class.csv", pa.Table.from_pylist(rows))
    names = ("actual", "predicted", "baseline", "student", "removed")
    pairs = [(CLASSES[1], CLASSES[0], 1, 0, 1), (CLASSES[2], CLASSES[0], 1, 0, 1)]
    pairs += [(CLASSES[0], CLASSES[2], 0, 1, -1)]
    write_csv(
        out / "confusions.csv",
        pa.Table.from_pylist([dict(zip(names, pair, strict=True)) for pair in pairs]),
    )
    bins = [
        {
            **{"role": role, "calibrated": calibrated},
            **{"bin_low": low, "bin_high": low + 0.5, "videos": 3 * (low > 0)},
            "confidence": 0.75 if low else None,
            "accuracy": 0.8 if low else None,
        }
        for role in SCORES
        for calibrated in (False, True)
        for low in (0.0, 0.5)
    ]
    write_csv(out / "reliability.csv", pa.Table.from_pylist(bins))


def _cached_samples(videos: list[str]) -> pa.Table:
    """Ten samples to train on, of the classes' three videos in turn."""
    rows = [
        Sample(f"train-{row}", videos[row % len(videos)], "train", {"action": row % len(CLASSES)})
        for row in range(10)
    ]
    return build_samples("demo", {"action": CLASSES}, rows).table


def write_distillation(run: Run, terms: tuple[str, ...], videos: list[str]) -> None:
    """Logs with the columns that `distill` writes for the given terms, and the cache."""
    falling = [2.0 / (epoch + 1) for epoch in range(EPOCHS)]
    rising = [0.4 + 0.05 * epoch for epoch in range(EPOCHS)]
    common = {"epoch": list(range(EPOCHS)), "loss": falling, "ce": falling}
    after = {"accuracy/action": rising, "learning_rate": falling, "clips_per_sec": rising}
    student = common | dict.fromkeys(terms, falling) | after
    weights = []
    if "kd" in terms:
        student |= {"vit_weight": rising, "vit_leads": rising}
        weights = [
            {"epoch": epoch, "class": name, "vit_weight": rising[epoch] if epoch else float("nan")}
            for epoch in range(EPOCHS)
            for name in CLASSES
        ]
    schema = pa.schema(
        [("epoch", pa.int64()), ("class", pa.string()), ("vit_weight", pa.float64())]
    )
    out = run.outputs / "distill"
    write_csv(out / "datw.csv", pa.Table.from_pylist(weights, schema=schema))
    names = ("epoch", "vit_confidence", "cnn_confidence", "clips", "vit_weight")
    bins = [(e, *bin) for e in range(EPOCHS) for bin in [(0.8, 0.8, 6, 0.55), (0.2, 0.8, 4, 0.3)]]
    columns = zip(*bins, strict=True) if weights else [()] * 5
    write_csv(
        out / "datw_confidence.csv",
        pa.table(
            {
                n: pa.array(c, None if weights else pa.float64())
                for n, c in zip(names, columns, strict=True)
            }
        ),
    )
    write_csv(out / "student.csv", pa.table(student))
    write_csv(out / "baseline.csv", pa.table(common | after))
    if not CACHE.exists():
        identity = cache_making.IDENTITY | {"teachers": TEACHERS}
        samples = _cached_samples(videos)
        with cache_making.make_cache(
            CACHE, identity=identity, fields=FIELDS, count=len(samples), samples=samples
        ) as writer:
            cache_making.fill_cache(writer)
    fingerprint = describe(CACHE)["fingerprint"]
    record = {
        "cache_fingerprint": fingerprint,
        "rows_per_epoch": 10,
        "config": run.distill.model_dump(mode="json"),
        "weights_sha256": {variant: f"of {variant}" for variant in ("baseline", "student")},
    }
    write_json(out / "distill.json", record)


class Page(HTMLParser):
    """Collects what a test asks about; refuses tags that are not closed in order."""

    VOID = frozenset({"meta", "img", "br", "link", "wbr", "input"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.circles: dict[str, int] = {}  # of each chart, by its label
        self.text = ""
        self._open: list[str] = []
        self._chart = ""
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "svg":
            self._chart = dict(attrs).get("aria-label") or ""
        if tag == "circle":
            self.circles[self._chart] = self.circles.get(self._chart, 0) + 1

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open[-1:] not in (["style"], ["script"]):
            self.text += data

    def having(self, name: str, value: str) -> list[str]:
        """The tags with an attribute of that value."""
        return [tag for tag, attributes in self.elements if attributes.get(name) == value]
