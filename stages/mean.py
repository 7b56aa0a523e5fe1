"""`dualkd mean`: accuracies over several runs, as HMDB51's three official splits, or seeds."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table

from pipeline.config import Run
from stages.progress import PlainConsole
from stages.wording import percent, points

ROLES = ("vit", "cnn", "baseline", "student")
_FIGURES = {"top1": "top-1", "top5": "top-5"}


class MeanError(ValueError):
    """There is no mean of these runs; the message says why and the way out."""


def mean_of_runs(runs: Sequence[Run]) -> dict[str, Any]:
    """Accuracies of runs that `evaluate` has scored; plain JSON.

    Args:
        runs: their configs, each once.

    Returns:
        `runs`, their names; per role `model`, `top1` and `top5`, with several heads also `heads`;
        and `gain_top1`. Of each figure `mean`, `std` (of the sample, n − 1; null of a single run)
        and `values`, in the order of the runs, as shares of 1.

    Raises:
        MeanError: one is named twice, was not evaluated, or was evaluated on another split, with
            another protocol, of other models or heads than the first, or has its very student.
    """
    names = [run.name for run in runs]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise MeanError(f"{twice[0]} is named {names.count(twice[0])} times: name each run once")
    metrics = [_metrics(run) for run in runs]
    for name, one in zip(names, metrics, strict=True):
        try:
            _check_alike(names[0], metrics[0], name, one)
        except KeyError as error:
            raise MeanError(
                f"the metrics of {name} or {names[0]} lack {error}; `dualkd evaluate` writes all"
            ) from error
    facts: dict[str, Any] = {"runs": names, "protocol": metrics[0]["protocol"]}
    for role in ROLES:
        of_role = [one[role] for one in metrics]
        facts[role] = {"model": of_role[0]["model"], **_of_figures(of_role)}
        if "heads" in of_role[0]:
            facts[role]["heads"] = {
                head: _of_figures([one["heads"][head] for one in of_role])
                for head in of_role[0]["heads"]
            }
    return facts | {"gain_top1": _summary([one["gain_top1"] for one in metrics])}


def _metrics(run: Run) -> dict[str, Any]:
    path = run.outputs / "evaluate" / "metrics.json"
    try:
        metrics: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise MeanError(
            f"{run.name} was not evaluated: no {path}; `dualkd evaluate --dataset {run.name}` "
            "makes it"
        ) from error
    except ValueError as error:
        raise MeanError(
            f"{path} is damaged ({error}); `dualkd evaluate --dataset {run.name}` makes it anew"
        ) from error
    return metrics


def _check_alike(
    first: str, expected: Mapping[str, Any], name: str, metrics: Mapping[str, Any]
) -> None:
    """Refuse a mean over accuracies that are not of the same thing."""
    for what in ("split", "protocol", *(f"{role}.model" for role in ROLES), "student.heads"):
        here, there = (_at(one, what) for one in (metrics, expected))
        if here != there:
            raise MeanError(
                f"{name} was evaluated with {what} {here}, {first} with {there}: their mean would "
                "mean nothing"
            )
    if name != first and _at(metrics, "student.weights_sha256") == _at(
        expected, "student.weights_sha256"
    ):
        raise MeanError(
            f"{name} and {first} have the very same student: they are one run, not two of which "
            "there is a mean (for HMDB51 each config has its own prepare.official_split)"
        )


def _at(metrics: Mapping[str, Any], what: str) -> Any:
    """A value; of heads, their names."""
    outer, _, inner = what.partition(".")
    if inner == "heads":
        return ", ".join(metrics[outer].get(inner, ["one head"]))
    return metrics[outer][inner] if inner else metrics[outer]


def _of_figures(of_role: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    return {figure: _summary([one[figure] for one in of_role]) for figure in _FIGURES}


def _summary(values: Sequence[float]) -> dict[str, Any]:
    std = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "std": std, "values": list(values)}


def show(facts: Mapping[str, Any]) -> None:
    """Print the means for people: percent, their deviations and gains in percentage points."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    table.add_column("")
    for heading in ("mean", "±", *facts["runs"]):
        table.add_column(heading, justify="right")
    for role in ROLES:
        rows = {name: facts[role][figure] for figure, name in _FIGURES.items()}
        for head, figures in facts[role].get("heads", {}).items():
            rows |= {f"{head} {name}": figures[figure] for figure, name in _FIGURES.items()}
        for name, one in rows.items():
            table.add_row(
                f"{role} {name}",
                percent(one["mean"]),
                percent(one["std"]),
                *(percent(value) for value in one["values"]),
            )
    gain = facts["gain_top1"]
    table.add_row(
        "gain top-1, points",
        points(gain["mean"]),
        points(gain["std"]).lstrip("+"),
        *(points(value) for value in gain["values"]),
    )
    console = PlainConsole()
    console.print(table)
    console.print(
        f"protocol {facts['protocol']}; ±: standard deviation over {len(facts['runs'])} runs"
    )
