"""The evidence: named settings × seeds, trained from one cache, one CSV row for each student.

    python benchmarks/evidence.py list                          # settings, runs, minutes
    python benchmarks/evidence.py run main --seeds 5            # or other groups; without: all
    python benchmarks/evidence.py run --smoke                   # one epoch each, to try it
    python benchmarks/evidence.py run main --device cuda --at-once 15 --decoders 15 --together 5
    python benchmarks/evidence.py score                         # trains none: rows of what is

What was interrupted goes on from its checkpoint; what has a row is not done again, on another
machine either. Students lie in outputs/<dataset>/evidence, rows in docs/results/<dataset>.csv.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import torch

from cache import TeacherCache
from evidence_plan import Key, Planned, config_sha256, plan
from evidence_settings import GROUPS, Setting, chosen
from making import command, commit_of, print_table
from online_feed import OnlineFeed
from pipeline.config import Run
from pipeline.config_file import load_config
from pipeline.devices import find_device, processor
from pipeline.resuming import Past
from pipeline.samples import Samples, read_samples, samples_from_table
from stages.ablation_results import check_unchanged
from stages.feed import Feed
from stages.files import write_csv
from stages.progress import console
from stages.scoring import labelled, score
from stages.side_by_side import run_many
from stages.student_training import Job

COLUMNS = (
    *("group", "setting", "variant", "seed", "train_top1", "val_top1", "test_top1", "test_top5"),
    *("minutes", "left_start", "changes", "online", "loss", "cache", "config_sha256", "commit"),
    *("device", "command"),
)
"""Of the CSV. Accuracies are shares of 1, `minutes` those of the training, beside others;
`train_top1` is that of the last epoch's batches, as the student saw them; `left_start` is the first
epoch, from 1, whose mean cross-entropy is below `LEFT` of a guesser's; `commit`, `device` and
`command` are of the call that ended its training."""
LEFT = 0.85


@dataclass(frozen=True)
class Machine:
    """Where students train.

    Attributes:
        device: that computes.
        at_once: trainings side by side, each with one thread.
        decoders: processes that decode: all together for the scores, one of each online training.
    """

    device: str
    at_once: int
    decoders: int

    @property
    def name(self) -> str:
        """Of the processor or the chip, for the rows."""
        if self.device == "cpu":
            return f"{processor()}, one core"
        return f"{torch.cuda.get_device_name(self.device)}, beside {self.at_once - 1} others"


def train(planned: Sequence[Planned], machine: Machine, commit: str) -> None:
    """Train what is not trained yet; what fails is told and left to the next call."""
    check_unchanged([one.student for one in planned])
    waiting = [one for one in planned if not one.student.trained]
    jobs = [
        Job(
            name=f"{one.setting.name}, seed {one.student.seed}",
            run=one.student.run,
            cache=one.cache,
            part=one.part,
            folder=one.student.folder,
            device=machine.device,
            threads=1,
            decoders=min(1, machine.decoders),
            checkpoint_steps=200,
            feed=OnlineFeed if one.setting.online else Feed,
        )
        for one in waiting
    ]
    for one in waiting:
        one.student.begin()

    def end(index: int, future: Future[Past]) -> None:
        student, error = waiting[index].student, future.exception()
        if error is not None:
            student.fail(error)
            console.print(f"{jobs[index].name} failed: {student.folder / 'failed.txt'}")
            return
        clips = waiting[index].part.num_usable  # of an epoch
        rates = [record["clips_per_sec"] for record in future.result().records]
        minutes = sum(clips / rate for rate in rates) / 60
        student.keep(minutes=minutes, command=command(), commit=commit, trained_on=machine.name)
        student.end(samples_from_table(waiting[index].cache.samples, "the cache").heads)

    if jobs:
        run_many(jobs, machine.at_once, end)


def score_all(run: Run, planned: Sequence[Planned], machine: Machine) -> None:
    """Score the trained ones that have no score: one decode of each split for all of them."""
    table = read_samples(run.samples_path)
    waiting = [one for one in planned if one.student.trained and "scores" not in one.student.result]
    found: dict[tuple[str, int], dict[str, float]] = {one.key: {} for one in waiting}
    models = {
        f"{one.setting.name}/{one.student.seed}": one.student.load(table.heads).to(machine.device)
        for one in waiting
    }
    for split in splits_of(run, table) if models else ():
        samples = labelled(table.of_splits([split]))
        root, decoders = Path(run.prepare.root), machine.decoders
        scored = score(models, root, samples, decoders, 32, what=f"scoring {split}")
        for one in waiting:
            figures = scored.accuracies(f"{one.setting.name}/{one.student.seed}")
            found[one.key] |= {f"{split}_{name}": figures[name] for name in ("top1", "top5")}
    for one in waiting:
        one.student.keep(scores=found[one.key])


def splits_of(run: Run, table: Samples) -> list[str]:
    """What is scored: `val` too, where there is one."""
    return [name for name in ("val", run.evaluate.split) if name in table.splits()]


def classes_of(cache: TeacherCache) -> int:
    """Of the one head."""
    return next(iter(samples_from_table(cache.samples, cache.place).heads.values()))


def of_training(metrics: Path, classes: int) -> dict[str, float | int | None]:
    """What a training's log tells; `left_start` is None where it never did."""
    records = [json.loads(text) for text in metrics.read_text().splitlines()]
    limit = LEFT * math.log(classes)
    left = next((record["epoch"] + 1 for record in records if record["ce"] < limit), None)
    return {"train_top1": records[-1]["accuracy/action"], "left_start": left}


def row_of(run: Run, one: Planned) -> dict[str, Any]:
    """Of the CSV."""
    result = one.student.result
    scores, test = result["scores"], run.evaluate.split
    return {
        "group": one.setting.group,
        "setting": one.setting.name,
        "variant": one.setting.variant,
        "seed": one.student.seed,
        "val_top1": scores.get("val_top1"),
        "test_top1": scores[f"{test}_top1"],
        "test_top5": scores[f"{test}_top5"],
        "minutes": round(result["minutes"], 2),
        **of_training(one.student.folder / "metrics.jsonl", classes_of(one.cache)),
        "changes": json.dumps(dict(one.setting.changes)),
        "online": one.setting.online,
        "loss": one.student.variant.loss,
        "cache": one.cache.fingerprint[:16],
        "config_sha256": config_sha256(one.student.run),
        "commit": result.get("commit"),
        "device": result.get("trained_on"),
        "command": result.get("command"),
    }


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Those that stand."""
    return pa.csv.read_csv(path).to_pylist() if path.is_file() else []


def by_key(path: Path) -> dict[Key, dict[str, Any]]:
    """The rows by setting and seed."""
    return {(row["setting"], row["seed"]): row for row in read_rows(path)}


def add_rows(run: Run, path: Path, planned: Sequence[Planned]) -> None:
    """Write the CSV with the rows of all that are scored; a row that stands stays as it is."""
    rows = by_key(path)
    for one in planned:
        if "scores" in one.student.result:
            rows.setdefault(one.key, row_of(run, one))
    names = {name: place for place, name in enumerate(GROUPS)}
    ordered = sorted(
        rows.values(), key=lambda row: (names[row["group"]], row["setting"], row["seed"])
    )
    complete = [{name: row.get(name) for name in COLUMNS} for row in ordered]
    write_csv(path, pa.Table.from_pylist(complete))


def counted(text: str) -> int:
    """An option that counts something, from 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return number


def main() -> None:
    """Read the options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("list", "run", "score"))
    parser.add_argument(
        "groups", nargs="*", help=f"of {', '.join(GROUPS)}, or names of settings; all by default"
    )
    parser.add_argument("--dataset", default="figures_hard")
    parser.add_argument("--seeds", type=counted, default=5)
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, …; auto takes a GPU")
    parser.add_argument("--at-once", type=counted, default=2, help="trainings side by side")
    parser.add_argument("--decoders", type=int, default=0, help="processes that decode, for scores")
    parser.add_argument(
        "--together", type=counted, default=1, help="seeds trained before any is scored"
    )
    parser.add_argument("--commit", help="of a copy of the repository that git does not know")
    parser.add_argument("--minutes", type=float, default=6.5, help="of a run on one core, for list")
    parser.add_argument("--smoke", action="store_true", help="one epoch each, rows beside them")
    parser.add_argument("--csv", type=Path)
    options = parser.parse_args()
    try:
        settings = chosen(options.groups)
        device = None if options.what == "list" else find_device(options.device)
    except ValueError as error:
        parser.error(str(error))
    if device is None:  # nothing is computed
        show(settings, options)
        return
    run = load_config(Path("configs") / f"{options.dataset}.yaml")
    csv = options.csv or Path("docs/results") / f"{options.dataset}.csv"
    folder = run.outputs / ("evidence-smoke" if options.smoke else "evidence")
    if options.smoke:
        csv = folder / "rows.csv"
    if options.what == "score":  # nor is a cache made for what nobody trained
        settings = [one for one in settings if (folder / one.name).is_dir()]
        if not settings:
            raise SystemExit(f"{folder} has no student of these settings: `run` trains them")
    console.print(f"{command()} -> {csv}")
    commit = options.commit or commit_of(Path(__file__).parent)
    machine = Machine(str(device), options.at_once, options.decoders)
    seeds = plan(run, settings, options.seeds, by_key(csv), smoke=options.smoke, device=device)
    for first in range(0, len(seeds), options.together):  # rows stand before the next ones train
        planned = list(chain.from_iterable(seeds[first : first + options.together]))
        if options.what == "run":
            train(planned, machine, commit)
        score_all(run, planned, machine)
        add_rows(run, csv, planned)


def show(settings: Sequence[Setting], options: argparse.Namespace) -> None:
    """The plan: what is trained and what it takes."""
    rows = []
    for group in dict.fromkeys(setting.group for setting in settings):
        members = [setting for setting in settings if setting.group == group]
        runs = options.seeds * len(members)
        minutes = options.seeds * sum(one.cost for one in members) * options.minutes
        rows.append([group, len(members), runs, f"{minutes:.0f}"])
    total = [sum(row[place] for row in rows) for place in (1, 2)]
    minutes = sum(float(row[3]) for row in rows)
    rows.append(["together", *total, f"{minutes:.0f}"])
    print_table(["group", "settings", "runs", "minutes of one core"], rows)


if __name__ == "__main__":
    main()
