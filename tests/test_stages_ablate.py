"""`dualkd ablate`: its variants, what it keeps, its statistics, its table and its plot."""

from __future__ import annotations

import csv
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import psutil
import pytest
import torch

from cache import TeacherCache, open_cache
from chain_making import write_config
from pipeline.config import Run
from pipeline.config_file import load_config
from pipeline.config_training import Weights
from pipeline.resuming import Past
from stages import ablate as stage
from stages import cli, memory
from stages.ablation_results import Student
from stages.ablation_table import summary, write_all
from stages.feed import Feed, used_part
from stages.intervals import estimate, t_quantile
from stages.side_by_side import Ended, run_many
from stages.student_training import CHECKPOINT, Job, train_student
from stages.variants import NAMES, chosen, of_everything, variants_of

DEMO = Path(__file__).parents[1] / "configs" / "demo.yaml"
TWO = ("--only", "labels,all", "--seeds", "2")


def in_turn(jobs: Sequence[Job], _at_once: int, on_end: Ended) -> None:
    """Train each in this process; a failure is an answer."""
    for index, job in enumerate(jobs):
        future: Future[Past] = Future()
        try:
            future.set_result(train_student(job))
        except Exception as error:
            future.set_exception(error)
        on_end(index, future)


def no_training(jobs: Sequence[Job], _at_once: int, _on_end: Ended) -> None:
    raise AssertionError(f"{jobs[0].name} is trained")


@pytest.fixture
def command(
    mini: Run, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """The command as its entry point runs it, in this process: its exit code, output and errors."""
    monkeypatch.setattr(stage, "run_many", in_turn)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["dualkd", "ablate", "--dataset", "mini", *arguments])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        out, err = capfd.readouterr()
        return int(stop.value.code or 0), out, " ".join(err.split())

    return run


# From the table of the t distribution in NIST's e-Handbook, 1.3.6.7.2, column 0.975.
PUBLISHED = {1: 12.706, 2: 4.303, 4: 2.776, 9: 2.262, 10: 2.228, 29: 2.045, 100: 1.984}


@pytest.mark.parametrize("degrees", PUBLISHED)
def test_quantiles_of_t_are_the_published_ones(degrees: int) -> None:
    assert t_quantile(degrees) == pytest.approx(PUBLISHED[degrees], abs=5e-4)


@pytest.mark.parametrize("degrees", [1, 2, 3, 7, 8])
def test_quantiles_of_t_hold_their_share_of_the_density(degrees: int) -> None:
    for share in (0.5, 0.95, 0.999):
        at = np.linspace(0, t_quantile(degrees, share), 200_001)
        scale = math.gamma((degrees + 1) / 2) / math.gamma(degrees / 2)
        density = scale / math.sqrt(degrees * math.pi)
        density = density * (1 + at**2 / degrees) ** (-(degrees + 1) / 2)
        assert 2 * np.trapezoid(density, at) == pytest.approx(share, abs=1e-6)


def test_the_interval_is_numpys_deviation_times_t() -> None:
    values = [0.70, 0.74, 0.69, 0.77, 0.75]
    found = estimate(values)
    half = 2.7764451 * np.std(values, ddof=1) / math.sqrt(5)
    assert found.mean == pytest.approx(np.mean(values))
    assert found.interval == pytest.approx((np.mean(values) - half, np.mean(values) + half))
    assert estimate([0.5]).interval is None


def test_each_variant_has_its_terms_and_the_configs_weights() -> None:
    run = load_config(DEMO)
    found = {name: (one.weighting, one.loss) for name, one in variants_of(run).items()}
    assert found == {
        "labels": ("uniform", "CE"),
        "kd_vit": ("vit", "CE + 1·KD(ViT)"),
        "kd_cnn": ("cnn", "CE + 1·KD(CNN)"),
        "uniform": ("uniform", "CE + 1·KD(uniform)"),
        "datw": ("datw", "CE + 1·KD(DATW)"),
        "datw_sdd": ("datw", "CE + 1·KD(DATW) + 0.5·SDD"),
        "datw_rkd": ("datw", "CE + 1·KD(DATW) + 0.03·RKD"),
        "all": ("datw", "CE + 1·KD(DATW) + 0.5·SDD + 0.03·RKD"),
        "dkd": ("uniform", "CE + 1·DKD(uniform)"),
        "entropy": ("entropy", "CE + 1·KD(entropy)"),
        "mimic": ("uniform", "CE + 1·mimicry of the ViT"),
        "learned_sdd": ("datw", "CE + 1·KD(DATW) + 0.5·SDD with a learned φ"),
    }
    method = variants_of(run)["all"].of(run, 3)
    again = method.distill.model_copy(update={"seed": run.distill.seed})
    assert again == run.distill  # the student of `distill` itself
    assert method.distill.seed == 3


def test_a_term_that_the_config_leaves_out_has_a_stated_weight() -> None:
    run = load_config(DEMO)
    weights = Weights(kd=0, sdd=0.2, rkd=0, mimic=3)
    run = run.model_copy(update={"distill": run.distill.model_copy(update={"weights": weights})})
    variants = variants_of(run)
    assert variants["all"].weights == Weights(kd=1, sdd=0.2, rkd=0.03)
    assert variants["learned_sdd"].weights == Weights(kd=1, sdd=0, rkd=0, learned_sdd=0.2)
    assert variants["mimic"].loss == "CE + 3·mimicry of the ViT"
    assert variants["labels"].loss == "CE"


def test_all_variants_see_the_same_clips_in_the_same_order(mini: Run) -> None:
    cache = open_cache(mini.cache_path)
    part = used_part(of_everything(mini), cache)
    part.valid[2, 1] = part.valid[5] = False  # as if teachers had failed there
    seen = []
    for variant in variants_of(mini).values():
        feed = Feed(variant.of(mini, 4), cache, part, torch.device("cpu"), 0)
        seen.append([(batch.names, batch.clips) for epoch in (0, 1) for batch in feed(epoch)])
    for one, other in pairwise(seen):
        assert [names for names, _ in one] == [names for names, _ in other]
        assert all(torch.equal(a, b) for (_, a), (_, b) in zip(one, other, strict=True))


def students(run: Run, scores: Mapping[str, Mapping[int, float]]) -> list[Student]:
    """Scored students that were never trained."""
    made = []
    for name, of_seeds in scores.items():
        for seed, top1 in of_seeds.items():
            student = Student(variants_of(run)[name], seed, run, Path("nowhere"), {})
            student.result["score"] = {"top1": top1, "top5": top1 + 0.1, "videos": 40}
            made.append(student)
    return made


SCORES = {
    "labels": {0: 0.70, 1: 0.72, 2: 0.65},
    "uniform": {0: 0.74, 1: 0.75, 2: 0.70},
    "all": {0: 0.78, 1: 0.74, 2: 0.75},
}


def test_gains_are_paired_by_seed() -> None:
    run = load_config(DEMO)
    facts = summary(run, students(run, SCORES), {"split": "test"}, 3, {})
    rows = {row["variant"]: row for row in facts["variants"]}
    assert list(rows) == ["labels", "uniform", "all"]
    for reference in ("labels", "uniform"):
        gains = np.subtract(list(SCORES["all"].values()), list(SCORES[reference].values()))
        half = 4.30265 * gains.std(ddof=1) / math.sqrt(3)
        found = rows["all"][f"over_{reference}"]
        assert found["values"] == pytest.approx(list(gains))
        assert [found["mean"], found["low"], found["high"]] == pytest.approx(
            [gains.mean(), gains.mean() - half, gains.mean() + half], rel=1e-5
        )
        assert rows[reference][f"over_{reference}"] is None
    assert rows["all"]["top5"]["mean"] == pytest.approx(0.8567, abs=1e-4)
    assert facts["seeds"] == [0, 1, 2]


def test_what_is_missing_is_told() -> None:
    run = load_config(DEMO)
    some = {"uniform": SCORES["uniform"], "all": {0: 0.78, 2: 0.75}}
    facts = summary(run, students(run, some), {"split": "test"}, 3, {})
    row = facts["variants"][1]
    assert row["over_labels"] is None
    assert row["over_uniform"]["values"] == pytest.approx([0.04, 0.05])  # of the seeds 0 and 2
    said = "\n".join(facts["notes"])
    assert "no labels: what is gained over it is not known" in said
    assert "`dualkd ablate --dataset demo --seeds 3 --only labels`" in said
    assert "of fewer than 3 seeds: all" in said
    assert "not there yet: kd_vit, kd_cnn, datw," in said


def test_one_seed_has_no_interval_and_says_so(tmp_path: Path) -> None:
    run = load_config(DEMO)
    one = {name: {0: of_seeds[0]} for name, of_seeds in SCORES.items()}
    facts = summary(run, students(run, one), {"split": "test"}, 1, {})
    assert "one seed: there are no intervals" in facts["notes"][0]
    assert facts["variants"][2]["top1"]["low"] is None
    write_all(tmp_path, facts)
    assert "| 1 | 78.0 | +8.0 | +4.0 | 88.0 |" in (tmp_path / "ablate.md").read_text()
    assert "interval" not in (tmp_path / "ablate.svg").read_text().partition("</style>")[2]


def test_table_and_plot_as_files(tmp_path: Path) -> None:
    run = load_config(DEMO)
    write_all(tmp_path, summary(run, students(run, SCORES), {"split": "test"}, 3, {}))
    lines = (tmp_path / "ablate.md").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith("| `all`"))
    assert "| CE + 1·KD(DATW) + 0.5·SDD + 0.03·RKD | 3 | 75.7 ± 5.2 | +6.7 ± 10.3 |" in line
    rows = list(csv.DictReader((tmp_path / "ablate.csv").read_text().splitlines()))
    assert [row["variant"] for row in rows] == ["labels", "uniform", "all"]
    assert rows[0]["over_labels_mean"] == ""
    assert float(rows[2]["over_labels_low"]) == pytest.approx(-0.0367, abs=5e-4)
    svg = ElementTree.parse(tmp_path / "ablate.svg").getroot()
    space = "{http://www.w3.org/2000/svg}"
    assert svg.tag == f"{space}svg"
    kinds = [one.get("class") for one in svg.iter()]
    assert (kinds.count("dot"), kinds.count("mean"), kinds.count("range")) == (9, 3, 3)
    assert svg.find(f"{space}style") is not None
    places = [float(dot.get("cx", "nan")) for dot in svg.iter(f"{space}circle")]
    assert all(0 < place < 680 for place in places)
    titles = {title.text for title in svg.iter(f"{space}title")}
    assert "all, seed 1: 74\u202f%" in titles


def test_the_whole_command_and_what_it_does_not_do_twice(
    mini: Run,
    command: Callable[..., tuple[int, str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    starts: dict[str, str] = {}

    def watched(jobs: Sequence[Job], at_once: int, on_end: Ended) -> None:
        def end(index: int, future: Future[Past]) -> None:
            kept = torch.load(jobs[index].folder / CHECKPOINT, weights_only=True)["belongs_to"]
            starts[jobs[index].name] = json.loads(kept)["first_weights_sha256"]
            on_end(index, future)

        in_turn(jobs, at_once, end)

    monkeypatch.setattr(stage, "run_many", watched)
    code, out, err = command(*TWO)
    assert code == 0
    assert "4 students to train" in err
    assert "no uniform: what is gained over it is not known" in " ".join(out.split())
    assert starts["labels, seed 0"] == starts["all, seed 0"] != starts["all, seed 1"]
    folder = mini.outputs / "ablate"
    facts = json.loads((folder / "ablate.json").read_text())
    assert [row["variant"] for row in facts["variants"]] == ["labels", "all"]
    assert (facts["videos"], facts["split"], facts["failed"]) == (14, "test", [])
    assert {path.name for path in folder.glob("ablate.*")} == {
        f"ablate.{kind}" for kind in ("csv", "json", "md", "svg")
    }
    assert not list(folder.rglob(CHECKPOINT))

    monkeypatch.setattr(stage, "run_many", no_training)
    monkeypatch.setattr(stage, "score", no_training)
    code, out, err = command(*TWO, "--json")
    assert (code, json.loads(out)) == (0, facts)
    assert "4 of 4 students are trained already" in err

    write_config(Path.cwd(), ("sdd: 0.1", "sdd: 0.2"), ("temperature: 2.0", "temperature: 3.0"))
    code, _, err = command(*TWO)
    assert code == 1
    assert "4 of 4 students were trained with another config (the first: labels, seed 0)" in err
    assert "distill.temperature: was 2.0, is 3.0" in err
    assert "distill.weights.sdd: was 0.1, is 0.2" in err
    assert "--anew drops" in err
    with pytest.raises(AssertionError, match="labels, seed 0 is trained"):
        stage.ablate(load_config(Path("configs/mini.yaml")), options(mini, anew=True))


def options(run: Run, *, only: Sequence[str] = ("labels",), anew: bool = False) -> stage.Options:
    return stage.Options(run.cache_path, 1, only, torch.device("cpu"), anew=anew)


def test_a_failure_loses_nothing_of_the_others(
    mini: Run,
    command: Callable[..., tuple[int, str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = mini.outputs / "ablate"
    broken = folder / "labels" / "seed-0" / CHECKPOINT
    broken.parent.mkdir(parents=True)
    broken.write_text("rubbish")
    shown = ("--only", "labels,uniform", "--seeds", "1")
    code, out, err = command(*shown)
    assert code == 1
    assert "1 student could not be made; the others stand" in err
    assert "labels, seed 0: CheckpointError: outputs/mini/ablate/labels/seed-0" in err
    assert "uniform" in out
    assert "CheckpointError" in (broken.parent / "failed.txt").read_text()
    broken.unlink()
    code, out, err = command(*shown)
    assert (code, "1 of 2 students are trained already" in err) == (0, True)
    assert not (broken.parent / "failed.txt").exists()

    # Other samples to be scored on: the students stand, their scores are made again.
    monkeypatch.setattr(stage, "run_many", no_training)
    part = stage.read_samples(mini.samples_path).take(range(20, 28))
    monkeypatch.setattr(stage, "labelled", lambda _samples: part)
    assert command(*shown)[0] == 0
    assert json.loads((folder / "ablate.json").read_text())["videos"] == 8

    weights = folder / "uniform" / "seed-0" / "last.safetensors"
    weights.write_bytes((folder / "labels" / "seed-0" / "last.safetensors").read_bytes())
    monkeypatch.setattr(stage, "labelled", lambda samples: samples)
    with pytest.raises(stage.AblationError, match="not the weights that the training ended with"):
        stage.check_all_there(stage.ablate(mini, options(mini)))


def test_unknown_variants_and_torchrun_are_refused(
    command: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, _, err = command("--only", "labels,kd_vitt")
    assert (code, "no variant 'kd_vitt'; there are labels, kd_vit," in err) == (1, True)
    assert chosen("all, labels") == ["labels", "all"]
    assert chosen(None) == list(NAMES)
    monkeypatch.setattr(stage, "launched", lambda: True)
    code, _, err = command()
    assert (code, "start it without torchrun" in err) == (1, True)


def test_as_many_at_once_as_memory_and_cores_allow(
    mini: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = open_cache(mini.cache_path)
    need = memory.memory_of(mini, cache, decoders=0)
    assert 0.8e9 < need < 1.5e9  # about what `top` shows
    assert memory.memory_of(mini, cache, decoders=2) - need == 2 * memory._PROCESS_BYTES
    assert 0 < memory.free_memory() <= psutil.virtual_memory().total
    at_once: list[Any] = []
    for cores, free in ((4, 10 * need), (64, 3.5 * need), (64, 0)):
        monkeypatch.setattr(stage.os, "cpu_count", lambda cores=cores: cores)
        monkeypatch.setattr(stage, "free_memory", lambda free=free: int(free))
        at_once.append(stage._fitting(mini, cache, options(mini))[0])
    assert at_once == [4, 3, 1]
    gpu = replace(options(mini), device=torch.device("cuda"))
    assert stage._fitting(mini, cache, gpu) == (1, "on cuda --at-once chooses more")


@pytest.mark.slow
def test_processes_train_as_one_does_and_fail_alone(mini: Run) -> None:
    cache: TeacherCache = open_cache(mini.cache_path)
    part = used_part(mini, cache)

    def job(folder: str) -> Job:
        return Job("it", mini, cache, part, Path(folder), "cpu", 1, 0, 100)

    Path("bad").mkdir()
    Path("bad", CHECKPOINT).write_text("rubbish")
    ended: dict[str, str] = {}
    run_many(
        [job("bad"), job("good")],
        1,
        lambda index, future: ended.update({("bad", "good")[index]: repr(future.exception())}),
    )
    assert list(ended) == ["bad", "good"]
    assert ended["good"] == "None"
    assert ended["bad"].startswith("CheckpointError")
    train_student(job("alone"))
    one, other = (Path(folder, "last.safetensors") for folder in ("good", "alone"))
    assert one.read_bytes() == other.read_bytes()
