"""`dualkd mean` against numpy; runs that cannot be averaged are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from pipeline.config import Run
from pipeline.config_file import load_config
from stages import cli
from stages.mean import ROLES, MeanError, mean_of_runs

DEMO = Path(__file__).parents[1] / "configs" / "demo.yaml"
TOP1 = {"one": 0.5, "two": 0.625, "three": 0.75}


def metrics(top1: float, heads: tuple[str, ...] = ()) -> dict[str, Any]:
    """A `metrics.json` as `evaluate` writes it, as far as it is read."""
    of_role: dict[str, Any] = {"model": "timm/resnet18", "top1": top1, "top5": top1 + 0.2}
    of_role["weights_sha256"] = str(top1)
    if heads:
        of_role["heads"] = {head: {"top1": top1 + 0.1, "top5": top1 + 0.2} for head in heads}
    return {
        "split": "test",
        "protocol": "10x3",
        **dict.fromkeys(ROLES, of_role),
        "gain_top1": top1 - 0.6,
    }


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Run]:
    monkeypatch.chdir(tmp_path)
    Path("configs").mkdir()
    found = []
    for name, top1 in TOP1.items():
        path = Path("configs") / f"{name}.yaml"
        path.write_text(DEMO.read_text())
        found.append(load_config(path))
        write(found[-1], metrics(top1))
    return found


def write(run: Run, content: dict[str, Any]) -> Path:
    path = run.outputs / "evaluate" / "metrics.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def test_the_mean_is_numpys(runs: list[Run]) -> None:
    facts = mean_of_runs(runs)
    values = np.array(list(TOP1.values()))
    assert facts["runs"] == list(TOP1)
    for role in ROLES:
        assert facts[role]["top1"]["mean"] == pytest.approx(values.mean())
        assert facts[role]["top1"]["std"] == pytest.approx(values.std(ddof=1))
        assert facts[role]["top5"]["values"] == pytest.approx(list(values + 0.2))
    assert facts["gain_top1"]["mean"] == pytest.approx(values.mean() - 0.6)
    assert mean_of_runs(runs[:1])["vit"]["top1"] == {"mean": 0.5, "std": None, "values": [0.5]}


def test_heads_have_means_of_their_own(runs: list[Run]) -> None:
    for run, top1 in zip(runs, TOP1.values(), strict=True):
        write(run, metrics(top1, ("verb", "noun")))
    facts = mean_of_runs(runs)
    assert facts["student"]["heads"]["noun"]["top1"]["mean"] == pytest.approx(0.725)
    assert "noun top-1" in CliRunner().invoke(cli.app, ["mean", *TOP1]).output


def test_the_command_prints_each_run_and_the_mean(runs: list[Run]) -> None:
    result = CliRunner().invoke(cli.app, ["mean", *TOP1])
    assert result.exit_code == 0
    (line,) = (line for line in result.output.splitlines() if line.startswith("student top-1"))
    shares = [part for part in line.replace("\u202f", " ").split()[2:] if part != "%"]
    assert shares == ["62.5", "12.5", "50.0", "62.5", "75.0"]
    (line,) = (line for line in result.output.splitlines() if line.startswith("gain"))
    assert line.split()[3:] == ["+2.5", "12.5", "−10.0", "+2.5", "+15.0"]
    as_json = CliRunner().invoke(cli.app, ["mean", *TOP1, "--json"])
    assert json.loads(as_json.output) == mean_of_runs(runs)


def test_runs_that_are_no_three_of_a_kind_are_refused(runs: list[Run]) -> None:
    with pytest.raises(MeanError, match="two is named 2 times"):
        mean_of_runs([*runs, runs[1]])
    write(runs[1], metrics(0.5) | {"protocol": "centre"})
    with pytest.raises(MeanError, match=r"two .* protocol centre, one with 10x3"):
        mean_of_runs(runs)
    write(runs[1], metrics(0.625) | {"split": "train"})
    with pytest.raises(MeanError, match=r"two .* split train, one with test"):
        mean_of_runs(runs)
    write(runs[1], metrics(0.625, ("verb", "noun")))
    with pytest.raises(MeanError, match=r"student\.heads verb, noun, one with one head"):
        mean_of_runs(runs)
    write(runs[1], metrics(TOP1["one"]))
    with pytest.raises(MeanError, match="two and one have the very same student"):
        mean_of_runs(runs)
    lacking = metrics(0.625)
    del lacking["cnn"]
    write(runs[1], lacking)
    with pytest.raises(MeanError, match="lack 'cnn'"):
        mean_of_runs(runs)
    other = metrics(0.5)
    write(runs[1], other | {"student": other["student"] | {"model": "timm/resnet50"}})
    with pytest.raises(MeanError, match=r"student\.model timm/resnet50, one with timm/resnet18"):
        mean_of_runs(runs)
    path = write(runs[1], {})
    path.write_text("{")
    with pytest.raises(MeanError, match=r"damaged .* `dualkd evaluate --dataset two` makes it"):
        mean_of_runs(runs)
    path.unlink()
    with pytest.raises(MeanError, match="two was not evaluated"):
        mean_of_runs(runs)
