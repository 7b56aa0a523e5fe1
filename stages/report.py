"""Stage `report`: one self-contained HTML page about the run.

Top to bottom: read what the other stages left, refuse what does not belong together, find out what
it says, read some videos, and fill the templates in `report_page`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from cache import open_cache
from pipeline.config import Run
from stages import curves, datw_charts, findings, wording
from stages.examples import Examples, read_examples
from stages.exported import read_exported
from stages.files import write_text
from stages.provenance import config_text, provenance
from stages.reliability import reliability_chart
from stages.report_inputs import ROLES, TITLES, Inputs, check_same_run, read_inputs
from stages.residual_page import ResidualPage, residual_page
from stages.saving import find_saving

_PAIRS = 6  # of classes that are confused less, and more
_PAGE = Path(__file__).parent / "report_page"
_FILTERS = (
    *("count", "duration", "figure", "percent", "plural"),
    *("points", "scaled", "short_percent", "size"),
)


def report(run: Run, *, cache_path: str | Path) -> Path:
    """Write `report.html` and return its path.

    Raises:
        ReportError: an input is missing or damaged, or two of them are of different runs.
        cache.CacheError: the cache is damaged.
    """
    inputs = read_inputs(run, cache_path)
    check_same_run(inputs)
    path = run.outputs / "report.html"
    residual = residual_page(run, open_cache(cache_path, blocks=True))
    write_text(path, render(inputs, residual, read_examples(inputs)))
    return path


def render(inputs: Inputs, residual: ResidualPage | None, examples: Examples) -> str:
    """Fill the templates."""
    environment = Environment(
        loader=FileSystemLoader(_PAGE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for name in _FILTERS:
        environment.filters[name] = getattr(wording, name)
    environment.filters["transposed"] = _transposed
    environment.filters["breakable"] = _breakable
    return environment.get_template("page.html").render(
        inputs=inputs,
        run=inputs.run,
        roles=TITLES,
        heads=[_head(inputs, head) for head in inputs.samples.classes],
        parts=_parts(inputs),
        reliability={
            role: reliability_chart(inputs.reliability, role, TITLES[role]) for role in ROLES
        },
        loss_panels=curves.loss_panels(inputs.logs, inputs.run.distill.weights),
        datw_panels=curves.datw_panels(inputs.logs["student"]),
        class_weights=datw_charts.class_weights(inputs.datw),
        confidence_weights=datw_charts.confidence_weights(inputs.datw_confidence),
        coverage=findings.explain_coverage(inputs.cache["rows"]),
        saving=find_saving(inputs),
        residual=residual,
        examples=examples,
        exported=read_exported(inputs.export, inputs.metrics["student"]["weights_sha256"]),
        provenance=provenance(inputs),
        config=config_text(inputs.run),
    )


@dataclass(frozen=True)
class Head:
    """What the page says of the classes of one head."""

    name: str
    class_rows: list[Mapping[str, Any]]
    removed: list[dict[str, Any]]
    added: list[dict[str, Any]]
    confusion_chart: Markup | None


def _head(inputs: Inputs, name: str) -> Head:
    answers, classes = inputs.answers[name], inputs.samples.classes[name]
    removed = sorted(inputs.removed[name], key=lambda row: -row["removed"])
    return Head(
        name=name,
        class_rows=findings.by_gain(inputs.by_class[name]),
        removed=[row for row in removed if row["removed"] > 0][:_PAIRS],
        added=[row for row in reversed(removed) if row["removed"] < 0][:_PAIRS],
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
