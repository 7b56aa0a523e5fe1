"""What the report reads: the files that the other stages left, checked to be of one run."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cache import describe, identity_differences, is_cache, is_url
from pipeline.config import Run
from pipeline.samples import Samples, read_samples

ROLES = ("vit", "cnn", "baseline", "student")
TITLES = {
    "vit": "ViT teacher",
    "cnn": "CNN teacher",
    "baseline": "Baseline",
    "student": "Student",
}
_DISTILL = ("baseline.csv", "student.csv", "datw.csv", "datw_confidence.csv", "distill.json")
_EVALUATE = (
    *("metrics.json", "answers.parquet"),
    *("by_class.csv", "confusions.csv", "reliability.csv"),
)
_NAMES = ("class", "head", "actual", "predicted", "role")  # columns of text
_AGREEMENT = ("agreement_vit", "agreement_cnn")
_ALL_HEADS = "action"  # what `evaluate` calls several heads together
Interval = tuple[float, float] | None


class ReportError(ValueError):
    """The report cannot be written; the message names the file and the command that makes it."""


@dataclass(frozen=True)
class Score:
    """What `evaluate` says of one network; of several heads, of all of them together."""

    model: str
    top1: float
    top1_interval: Interval
    top5: float
    top5_interval: Interval
    mean_class_accuracy: float
    mean_class_interval: Interval
    temperature: float | None
    ece: float | None
    ece_calibrated: float | None
    parameters: int
    flops: int
    ms_per_clip: float


@dataclass(frozen=True)
class Inputs:
    """What the other stages left.

    Attributes:
        run: the config.
        samples: the samples of the split that was scored.
        metrics: `evaluate/metrics.json`.
        metrics_time: when it was written.
        scores: its figures by role.
        sample_ids: of the answers, in their order.
        answers: `evaluate/answers.parquet` by head, then column: `label`, `student_answer`, ….
        by_class: the rows of `evaluate/by_class.csv` by head.
        removed: those of `evaluate/confusions.csv`, the mistakes that distillation removed.
        reliability: those of `evaluate/reliability.csv`, of all heads together.
        logs: `distill/<variant>.csv` by variant, then column.
        datw: the rows of `distill/datw.csv`.
        datw_confidence: those of `distill/datw_confidence.csv`.
        distill: `distill/distill.json`.
        teach: `teach.json`.
        cache: what `cache.describe` says.
        export: `export/export.json`; None where nothing was exported.
    """

    run: Run
    samples: Samples
    metrics: dict[str, Any]
    metrics_time: datetime
    scores: dict[str, Score]
    sample_ids: list[str]
    answers: dict[str, dict[str, NDArray[Any]]]
    by_class: dict[str, list[dict[str, Any]]]
    removed: dict[str, list[dict[str, Any]]]
    reliability: list[dict[str, Any]]
    logs: dict[str, dict[str, list[float]]]
    datw: list[dict[str, Any]]
    datw_confidence: list[dict[str, Any]]
    distill: dict[str, Any]
    teach: dict[str, Any]
    cache: dict[str, Any]
    export: dict[str, Any] | None


def read_inputs(run: Run, cache_path: str | Path) -> Inputs:
    """Read everything.

    Raises:
        ReportError: a file is missing, is damaged, or lacks what the page shows.
        pipeline.samples.SamplesError: the samples table cannot be used.
        cache.CacheError: the cache is damaged.
    """
    if not is_url(cache_path) and not is_cache(Path(cache_path)):
        raise ReportError(
            f"no cache at {cache_path}; `dualkd-cache extract --dataset {run.name}` makes it, "
            "--cache names another"
        )
    figures = [field.name for field in fields(Score)]
    teach = _File(run, "teach", run.outputs / "teach.json")
    distill = {name: _File(run, "distill", run.outputs / "distill" / name) for name in _DISTILL}
    evaluate = {name: _File(run, "evaluate", run.outputs / "evaluate" / name) for name in _EVALUATE}
    keys = [f"{role}.{figure}" for role in ROLES for figure in (*figures, "weights_sha256")]
    samples = read_samples(run.samples_path).of_splits([run.evaluate.split])
    if len(samples.heads) > 1:
        keys += [f"{role}.heads.{head}.top1" for role in ROLES for head in samples.heads]
    keys += [f"{role}.{figure}" for role in ("baseline", "student") for figure in _AGREEMENT]
    about = ["split", "protocol", "views", "videos", "unreadable", "gain_top1"]
    about += ["gain_top1_interval", "bootstrap.samples", "bootstrap.level"]
    export = _File(run, "export", run.outputs / "export" / "export.json")
    heads = list(samples.classes)
    metrics = evaluate["metrics.json"].json([*about, *keys])
    return Inputs(
        run=run,
        samples=samples,
        metrics=metrics,
        metrics_time=datetime.fromtimestamp(evaluate["metrics.json"].path.stat().st_mtime, UTC),
        scores={role: Score(**{name: metrics[role][name] for name in figures}) for role in ROLES},
        sample_ids=evaluate["answers.parquet"].table(["sample_id"])["sample_id"].to_pylist(),
        answers=_answers(evaluate["answers.parquet"], heads),
        by_class=_by_head(evaluate["by_class.csv"], heads, ["class", "videos", *ROLES, "gain"]),
        removed=_by_head(
            evaluate["confusions.csv"],
            heads,
            ["actual", "predicted", "baseline", "student", "removed"],
        ),
        reliability=_reliability(evaluate["reliability.csv"]),
        logs={
            variant: distill[f"{variant}.csv"].table(["epoch", "loss", "ce"]).to_pydict()
            for variant in ("baseline", "student")
        },
        datw=distill["datw.csv"].table(["epoch", "class", "vit_weight"]).to_pylist(),
        datw_confidence=distill["datw_confidence.csv"]
        .table(["epoch", "vit_confidence", "cnn_confidence", "clips", "vit_weight"])
        .to_pylist(),
        distill=distill["distill.json"].json(
            ["cache_fingerprint", "rows_per_epoch", "config", "weights_sha256"]
        ),
        teach=teach.json(["vit.weights_sha256", "cnn.weights_sha256"]),
        cache=describe(cache_path),
        export=export.json([]) if export.path.exists() else None,
    )


def _answers(file: _File, heads: list[str]) -> dict[str, dict[str, NDArray[Any]]]:
    """By head, then column; of several heads the file's columns begin with theirs."""
    columns = ["label", *(f"{role}_{what}" for role in ROLES for what in ("answer", "probability"))]
    prefixes = {head: f"{head}/" if len(heads) > 1 else "" for head in heads}
    table = file.table([f"{prefix}{name}" for prefix in prefixes.values() for name in columns])
    return {
        head: {name: table[f"{prefix}{name}"].to_numpy() for name in columns}
        for head, prefix in prefixes.items()
    }


def _by_head(
    file: _File, heads: list[str], columns: Sequence[str]
) -> dict[str, list[dict[str, Any]]]:
    """The rows by head; of several heads each row says whose it is."""
    several = len(heads) > 1
    rows = file.table([*(["head"] if several else []), *columns]).to_pylist()
    return {head: [row for row in rows if not several or row["head"] == head] for head in heads}


def _reliability(file: _File) -> list[dict[str, Any]]:
    """The bins of confidence of all heads together."""
    columns = ["role", "calibrated", "bin_low", "bin_high", "videos", "confidence", "accuracy"]
    rows = file.table(columns).to_pylist()
    return [row for row in rows if row.get("head", _ALL_HEADS) == _ALL_HEADS]


@dataclass(frozen=True)
class _File:
    """One input and the stage that makes it."""

    run: Run
    stage: str
    path: Path

    def json(self, keys: Sequence[str]) -> dict[str, Any]:
        """An object with at least these dotted keys."""
        try:
            content: Any = json.loads(self._bytes())
        except ValueError as error:
            raise self._error(f"is damaged ({error})") from error
        for key in keys:
            inner = content
            for part in key.split("."):
                if not isinstance(inner, dict) or part not in inner:
                    raise self._error(f"lacks {key!r}")
                inner = inner[part]
        return dict(content)

    def table(self, columns: Sequence[str]) -> pa.Table:
        """A table with at least these columns, from CSV or parquet."""
        content = io.BytesIO(self._bytes())
        # A class may be called `1` or `true`: names are never guessed to be something else.
        options = pa.csv.ConvertOptions(column_types=dict.fromkeys(_NAMES, pa.string()))
        try:
            if self.path.suffix == ".csv":
                table = pa.csv.read_csv(content, convert_options=options)
            else:
                table = pq.read_table(content)
        except (pa.ArrowException, OSError) as error:
            raise self._error(f"is damaged ({error})") from error
        missing = [name for name in columns if name not in table.column_names]
        if missing:
            raise self._error(f"lacks the columns {', '.join(missing)}")
        return table

    def _bytes(self) -> bytes:
        try:
            return self.path.read_bytes()
        except FileNotFoundError as error:
            raise self._error("is missing", verb="makes") from error

    def _error(self, what: str, verb: str = "remakes") -> ReportError:
        command = f"`dualkd {self.stage} --dataset {self.run.name}`"
        return ReportError(f"{self.path} {what}; {command} {verb} it")


def check_same_run(inputs: Inputs) -> None:
    """Refuse a page that mixes two runs.

    Raises:
        ReportError: the student was trained from another cache or with another config, the answers
            are another student's or of other videos, or the cache was made by other teachers than
            those that were scored.
    """
    dataset, cache = inputs.run.name, inputs.cache
    trained, found = inputs.distill["cache_fingerprint"], cache["fingerprint"]
    if trained != found:
        raise ReportError(
            f"the student was trained from the cache {trained}, but {cache['path']} is {found}; "
            f"`dualkd distill --dataset {dataset}` trains it anew, --cache names another cache"
        )
    wanted = inputs.run.distill.model_dump(mode="json")
    for name, trained, now in identity_differences(inputs.distill["config"], wanted):
        raise ReportError(
            f"distill.{name} is {now}, but the student was trained with {trained}; "
            f"`dualkd distill --dataset {dataset}` trains it anew"
        )
    for variant, trained in inputs.distill["weights_sha256"].items():
        scored = inputs.metrics[variant]["weights_sha256"]
        if scored != trained:
            raise ReportError(
                f"the {variant} that answered has the weights {scored}, the one that was trained "
                f"{trained}; `dualkd evaluate --dataset {dataset}` answers anew"
            )
    for role, teacher in cache["teachers"].items():
        scored, cached = inputs.teach[role]["weights_sha256"], teacher["weights_sha256"]
        if scored != cached:
            raise ReportError(
                f"teacher {role}: {inputs.run.outputs / 'teach.json'} scored the weights {scored}, "
                f"the cache was made by {cached}; `dualkd teach --dataset {dataset}` and "
                f"`dualkd-cache extract --dataset {dataset} --replace` bring them together"
            )
    _check_answers(inputs)


def _check_answers(inputs: Inputs) -> None:
    videos, answers = inputs.metrics["videos"], inputs.sample_ids
    again = f"`dualkd evaluate --dataset {inputs.run.name}` answers anew"
    scored, wanted = inputs.metrics["protocol"], inputs.run.evaluate.protocol
    if scored != wanted:
        raise ReportError(
            f"evaluate.protocol is {wanted}, but metrics.json is of the protocol {scored}; {again}"
        )
    if videos != len(answers):
        raise ReportError(
            f"metrics.json counts {videos} videos, answers.parquet {len(answers)}; {again}"
        )
    for columns in inputs.answers.values():
        for role in ROLES:
            if missing := int((columns[f"{role}_answer"] < 0).sum()):
                raise ReportError(
                    f"the output of {role} is not finite for {missing} of {videos} videos: its "
                    "weights are spoilt, and a page about it would mislead; when they are mended, "
                    f"{again}"
                )
    known = set(inputs.samples.table["sample_id"].to_pylist())
    strangers = [name for name in answers if name not in known]
    if strangers:
        raise ReportError(
            f"answers.parquet has {strangers[0]}, which {inputs.run.samples_path} does not list "
            f"in split {inputs.run.evaluate.split}; {again}"
        )
