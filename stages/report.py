"""Stage `report`: one self-contained HTML page about the run.

Top to bottom: read what the other stages left, refuse what does not belong together, find out what
it says, read a strip of frames for each class, and fill the template `report.html`.
"""

from __future__ import annotations

import importlib.metadata
import io
import platform
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from numpy.typing import NDArray
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


def report(run: Run, *, cache_path: Path) -> Path:
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
    rows = findings.by_gain(inputs.by_class)
    return environment.get_template("report.html").render(
        inputs=inputs,
        run=inputs.run,
        roles=TITLES,
        comparison=findings.compare(inputs.answers),
        class_rows=rows,
        confusions=findings.confusions(inputs.answers, inputs.classes),
        confusion_chart=findings.confusion_chart(inputs.answers, inputs.classes),
        loss_panels=curves.loss_panels(inputs.logs, inputs.run.distill.weights),
        datw_panels=curves.datw_panels(inputs.logs["student"]),
        class_weights=curves.class_weights(inputs.datw),
        coverage=findings.explain_coverage(inputs.cache["rows"]),
        saving=_saving(inputs),
        strips=_strips(inputs, [row["class"] for row in rows]),
        provenance=_provenance(inputs),
        config=_config_text(inputs.run),
    )


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
    """The first scored video of every class; where there are many, of those that changed most."""
    answers, classes = inputs.answers, inputs.classes
    if len(names) > _MOST_STRIPS:
        names = [*names[: _MOST_STRIPS // 2], *names[-_MOST_STRIPS // 2 :]]
    places = {
        name: place for place, name in enumerate(inputs.samples.table["sample_id"].to_pylist())
    }
    chosen = {}
    for row in reversed(range(len(answers["label"]))):
        chosen[classes[answers["label"][row]]] = row
    samples = {
        name: inputs.samples.row(places[answers["sample_id"][row]]) for name, row in chosen.items()
    }
    said = {
        answers["sample_id"][row]: [_answer(answers, role, row, classes) for role in TITLES]
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


def _answer(
    answers: Mapping[str, NDArray[Any]], role: str, row: int, classes: Sequence[str]
) -> Answer:
    answer = int(answers[f"{role}_answer"][row])
    return Answer(
        role=role,
        name=classes[answer],
        probability=float(answers[f"{role}_probability"][row]),
        right=bool(answer == answers["label"][row]),
    )


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
    scored = f"{inputs.metrics_time:%Y-%m-%d %H:%M} UTC, split {inputs.metrics['split']}"
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
