"""Stage `report`: one self-contained HTML page about the run.

Top to bottom: read what the other stages left, refuse what does not belong together, find out what
it says, read a strip of frames for each class, and fill the template `report.html`.
"""

from __future__ import annotations

import importlib.metadata
import io
import platform
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from ruamel.yaml import YAML

from pipeline.config import Run
from pipeline.views import ClipSpec
from stages import curves, findings, wording
from stages.files import write_text
from stages.progress import track
from stages.report_inputs import Inputs, check_same_run, read_inputs
from stages.strips import Answer, Strip, make_strips

TITLES = {
    "vit": "ViT teacher",
    "cnn": "CNN teacher",
    "baseline": "Baseline",
    "student": "Student",
}
_FILTERS = (
    *("count", "duration", "figure", "percent", "plural"),
    *("points", "scaled", "short_percent", "size"),
)
_MOST_STRIPS = 48  # more would make a page of many MB
_PACKAGES = ("dualkd", "torch", "torchvision", "pytorchvideo", "timm", "av", "numpy", "zarr")


def report(run: Run, *, cache_path: str | Path) -> Path:
    """Write `report.html` and return its path.

    Raises:
        ReportError: an input is missing or damaged, or two of them are of different runs.
        cache.CacheError: the cache is damaged.
    """
    inputs = read_inputs(run, cache_path)
    check_same_run(inputs)
    path = run.outputs / "report.html"
    write_text(path, render(inputs))
    return path


def render(inputs: Inputs) -> str:
    """Fill the template."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for name in _FILTERS:
        environment.filters[name] = getattr(wording, name)
    environment.filters["transposed"] = _transposed
    environment.filters["breakable"] = _breakable
    heads = [_head(inputs, head) for head in inputs.samples.classes]
    sizes = list(inputs.samples.heads.values())
    return environment.get_template("report.html").render(
        inputs=inputs,
        run=inputs.run,
        roles=TITLES,
        comparison=findings.compare(findings.together(inputs.answers, sizes)),
        heads=heads,
        parts=_parts(inputs),
        loss_panels=curves.loss_panels(inputs.logs, inputs.run.distill.weights),
        datw_panels=curves.datw_panels(inputs.logs["student"]),
        class_weights=curves.class_weights(inputs.datw),
        coverage=findings.explain_coverage(inputs.cache["rows"]),
        saving=_saving(inputs),
        strips=_strips(inputs, [row["class"] for row in heads[0].class_rows]),
        provenance=_provenance(inputs),
        config=_config_text(inputs.run),
    )


@dataclass(frozen=True)
class Head:
    """What the page says of the classes of one head."""

    name: str
    class_rows: list[dict[str, Any]]
    confusions: list[findings.Confusion]
    confusion_chart: Markup | None


def _head(inputs: Inputs, name: str) -> Head:
    answers, classes = inputs.answers[name], inputs.samples.classes[name]
    return Head(
        name=name,
        class_rows=findings.by_gain(inputs.by_class[name]),
        confusions=findings.confusions(answers, classes),
        confusion_chart=findings.confusion_chart(answers, classes),
    )


def _parts(inputs: Inputs) -> list[tuple[str, int, str, dict[str, dict[str, float]]]]:
    """Scores of each head, and of the subsets: part, its videos, heads in words, figures by role.

    Empty where the dataset has one head and no subsets: there is nothing to tell apart.
    """
    by_role = {role: inputs.metrics[role] for role in TITLES}
    heads = list(inputs.samples.classes)
    parts = {"all": by_role}
    for subset in by_role["student"].get("subsets", {}):
        parts[subset] = {role: figures["subsets"][subset] for role, figures in by_role.items()}
    rows = []
    for part, figures in parts.items():
        videos = figures["student"].get("videos", inputs.metrics["videos"])
        if videos and len(heads) > 1:
            for head in heads:
                of_head = {role: figure["heads"][head] for role, figure in figures.items()}
                rows.append((part, videos, head, of_head))
        if videos:
            rows.append((part, videos, " and ".join(heads), figures))
    return rows if len(rows) > 1 else []


def _transposed(columns: Iterable[Sequence[float]]) -> list[tuple[float, ...]]:
    return list(zip(*columns, strict=True))


def _breakable(name: str) -> Markup:
    """A name that may go on in the next line after `/` and `_`, on a narrow screen."""
    escaped = str(escape(name))
    return Markup(escaped.replace("/", "/<wbr>").replace("_", "_<wbr>"))  # noqa: S704 (escaped)


def _saving(inputs: Inputs) -> findings.Saving:
    rows, student = inputs.cache["rows"], inputs.logs["student"]
    both = inputs.scores["vit"].ms_per_clip + inputs.scores["cnn"].ms_per_clip
    online = 0.0
    if "rkd" in student:  # it reads the ViT's features alone
        online = inputs.scores["vit"].ms_per_clip
    if "kd" in student or "sdd" in student:
        online = both
    return findings.Saving(
        rows=rows["valid"] + rows["non_finite_output"],
        clips=inputs.distill["rows_per_epoch"],
        epochs=len(student["epoch"]),
        cache_ms=both,
        online_ms=online,
    )


def _strips(inputs: Inputs, names: Sequence[str]) -> list[Strip]:
    """The first scored video of every class of the first head; of many, of those changed most."""
    head, classes = next(iter(inputs.samples.classes.items()))
    labels = inputs.answers[head]["label"]
    if len(names) > _MOST_STRIPS:
        names = [*names[: _MOST_STRIPS // 2], *names[-_MOST_STRIPS // 2 :]]
    places = {
        name: place for place, name in enumerate(inputs.samples.table["sample_id"].to_pylist())
    }
    chosen = {}
    for row in reversed(range(len(labels))):
        chosen[classes[labels[row]]] = row
    samples = {
        name: inputs.samples.row(places[inputs.sample_ids[row]]) for name, row in chosen.items()
    }
    said = {
        inputs.sample_ids[row]: [_answer(inputs, role, row) for role in TITLES]
        for row in chosen.values()
    }
    clip = inputs.cache["teachers"]["vit"]["clip"]
    strips = make_strips(
        Path(inputs.run.prepare.root),
        ClipSpec(clip["frames"], clip["stride"], clip["size"]),
        sorted(names, key=classes.index),
        samples,
        said,
    )
    return list(track(strips, total=len(names), what="reading frames", unit="videos"))


def _answer(inputs: Inputs, role: str, row: int) -> Answer:
    """A network's classes of all heads, with the probability and the truth of all together."""
    names, probability, right = [], 1.0, True
    for head, classes in inputs.samples.classes.items():
        answers = inputs.answers[head]
        answer = int(answers[f"{role}_answer"][row])
        names.append(classes[answer])
        probability *= float(answers[f"{role}_probability"][row])
        right &= bool(answer == answers["label"][row])
    return Answer(role=role, name=" / ".join(names), probability=probability, right=right)


def _provenance(inputs: Inputs) -> list[tuple[str, str, str]]:
    """What made the figures: name, value and digest, either of them empty where there is none."""
    cache = inputs.cache
    splits = ", ".join(f"{number} {name}" for name, number in cache["samples_by_split"].items())
    rows = [("Dataset", f"{inputs.samples.dataset}; samples in the cache: {splits}", "")]
    for role in ("vit", "cnn"):
        teacher = cache["teachers"][role]
        rows.append((f"{TITLES[role]} weights", teacher["model"], teacher["weights_sha256"]))
    for role in ("baseline", "student"):
        if digest := inputs.metrics[role].get("weights_sha256"):
            rows.append((f"{TITLES[role]} weights", inputs.scores[role].model, digest))
    projection = cache["identity"].get("projection", {})
    settings = [f"{name} {value}" for name, value in projection.items() if name != "sha256"]
    scored = (
        f"{inputs.metrics_time:%Y-%m-%d %H:%M} UTC, split {inputs.metrics['split']}, "
        f"protocol {inputs.metrics['protocol']}"
    )
    return [
        *rows,
        ("Cache", f"format version {cache['format_version']}", cache["fingerprint"]),
        ("Projection", ", ".join(settings), projection.get("sha256", "")),
        (
            "Extraction",
            ", ".join(f"{name} {value}" for name, value in cache["provenance"].items()),
            "",
        ),
        ("Scored", scored, ""),
        ("Software of this page", _versions(), ""),
    ]


def _versions() -> str:
    versions = [f"python {platform.python_version()}"]
    for package in _PACKAGES:
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return ", ".join(versions)


def _config_text(run: Run) -> str:
    buffer = io.StringIO()
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = None
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.width = 96
    yaml.dump(run.model_dump(mode="json"), buffer)
    return buffer.getvalue()
