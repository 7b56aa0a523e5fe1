"""The cache as an output of a DVC stage, by real `dvc`: pushed, pulled, imported, shared by links.

The chain is the project's own `dvc.yaml` without the stages after `distill`, its plots and
its metrics of trainings under way, on the miniature run. Where a command would mostly load torch,
its stage runs in this process, and `dvc commit` records it as `dvc repro` would: `prepare`, `teach`
and the first `distill`. `dvc repro` runs `extract`, which finds the rows that the fixture has made,
and the `distill` of the second clone.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from ruamel.yaml import YAML

import stages.distill
from cache import verify_cache
from cache_making import contents
from chain_making import in_turn, options
from pipeline.config import Run
from pipeline.config_file import load_config
from stages.extract import extract
from stages.teach import teach

ROOT = Path(__file__).parents[1]
CACHE = "outputs/mini/cache"
STAGES = ("prepare", "teach", "extract", "distill")


def run(folder: Path, command: str, *, without: str = "") -> str:
    """Run a command in a repository, with no settings of this machine's user; returns its output.

    Args:
        folder: the repository.
        command: words, split at spaces.
        without: a command of ours that must not run: it fails there.
    """
    programs = [str(Path(sys.executable).parent), os.environ["PATH"]]
    if without:
        fake = folder.parent / f"no-{without}"
        fake.mkdir(exist_ok=True)
        (fake / without).write_text(f"#!/bin/sh\necho {without} was run: $@\nexit 3\n")
        (fake / without).chmod(0o755)
        programs.insert(0, str(fake))
    settings = {
        "PATH": os.pathsep.join(programs),
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "HOME": str(folder.parent),
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "GIT_CONFIG_SYSTEM": "/dev/null",
        "DVC_NO_ANALYTICS": "true",
        "DVC_SYSTEM_CONFIG_DIR": str(folder.parent / "none"),
        "DVC_GLOBAL_CONFIG_DIR": str(folder.parent / "none"),
    }
    for role in ("AUTHOR", "COMMITTER"):
        settings |= {f"GIT_{role}_NAME": "test", f"GIT_{role}_EMAIL": "test@example.org"}
    done = subprocess.run(
        command.split(),
        cwd=folder,
        env=settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{command}:\n{done.stdout}"
    return done.stdout


def write_pipeline(folder: Path) -> None:
    """The project's dvc.yaml, with these stages only."""
    yaml = YAML()
    pipeline = yaml.load((ROOT / "dvc.yaml").read_text())
    for name in [name for name in pipeline["stages"] if name not in STAGES]:
        del pipeline["stages"][name]
    del pipeline["metrics"], pipeline["plots"]
    with (folder / "dvc.yaml").open("w") as file:
        yaml.dump(pipeline, file)


@contextmanager
def inside(repository: Path) -> Iterator[Run]:
    """Be in a repository, and have its config."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(repository)
        patch.setattr(stages.distill, "run_side_by_side", in_turn)
        yield load_config(Path("configs/mini.yaml"))


def train_here(repository: Path) -> None:
    """What the stage `distill` does, in this process."""
    with inside(repository) as config:
        cache, device = config.cache_path, torch.device("cpu")
        stages.distill.distill(config, stages.distill.Options(cache, device, decoders=0))


@pytest.fixture(scope="module")
def first(extracted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A git repository in which the chain was run, pushed to a DVC remote, and committed."""
    folder = tmp_path_factory.mktemp("dvc") / "first"
    shutil.copytree(extracted, folder)
    for name in ("cache", "pipeline", "stages"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in (".dvc/config", ".dvcignore", ".gitignore"):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(ROOT / name, folder / name)
    (folder / "params.yaml").write_text("dataset: mini\n")
    write_pipeline(folder)
    run(folder, "git init -q")
    run(folder, f"dvc remote add -d store {folder.parent / 'remote'}")
    commit(folder, "the code")  # dvclive wants one
    with inside(folder) as config:
        teach(config, train_them=False, only=None, device=torch.device("cpu"), decoders=0)
    run(folder, "dvc commit -f prepare teach")
    assert run(folder, "dvc repro extract").count("Running stage") == 1
    train_here(folder)
    run(folder, "dvc commit -f distill")
    run(folder, "dvc push")
    commit(folder, "the chain")
    return folder


def commit(folder: Path, message: str) -> None:
    run(folder, "git add -A")
    run(folder, f"git commit -q --message={message.replace(' ', '-')}")


def clone(first: Path, tmp_path: Path, name: str = "second") -> Path:
    run(tmp_path, f"git clone -q {first} {name}")
    return tmp_path / name


def state(store: Path) -> dict[str, tuple[str, int, int]]:
    """Of every file of a DVC cache its digest, mode and time of change."""
    found = {}
    for file in store.rglob("*"):
        about = file.lstat()
        if file.is_file():
            digest = hashlib.sha256(file.read_bytes()).hexdigest()
            found[str(file)] = (digest, about.st_mode, about.st_mtime_ns)
    return found


def test_a_second_clone_has_the_chain_back_and_no_stage_runs(first: Path, tmp_path: Path) -> None:
    second = clone(first, tmp_path)
    for flags in ("--pull --allow-missing", "--pull"):
        # The first finds that nothing is to be done, so nothing is fetched; the second fetches all.
        printed = run(second, f"dvc repro {flags}", without="dualkd")
        assert "Running stage" not in printed
        assert (second / CACHE).exists() == (flags == "--pull")
    assert "up to date" in run(second, "dvc status")
    assert contents(second / CACHE, commits=True) == contents(first / CACHE, commits=True)
    assert "all is well" in run(second, f"dualkd-cache verify {CACHE}")


def test_a_changed_loss_trains_on_a_second_clone_and_no_teacher_runs(
    first: Path, tmp_path: Path
) -> None:
    second = clone(first, tmp_path)
    config = second / "configs" / "mini.yaml"
    config.write_text(config.read_text().replace("temperature: 2.0", "temperature: 3.0"))
    printed = run(second, "dvc repro --pull --allow-missing", without="dualkd-cache")
    assert printed.count("Running stage") == 1
    assert "Running stage 'distill'" in printed
    trained, before = (
        folder / "outputs/mini/distill/student.safetensors" for folder in (second, first)
    )
    assert trained.read_bytes() != before.read_bytes()
    assert not (second / "data").exists()  # not a video was there
    assert contents(second / CACHE, commits=True) == contents(first / CACHE, commits=True)


def test_a_cache_is_imported_by_another_repository(first: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    run(other, "git init -q")
    run(other, "dvc init -q")
    run(other, f"dvc import {first} {CACHE} -o teachers")
    assert contents(other / "teachers", commits=True) == contents(first / CACHE, commits=True)
    assert verify_cache(other / "teachers").findings == []


@pytest.mark.parametrize("kind", ["symlink", "hardlink"])
def test_two_clones_share_a_dvc_cache_by_links_and_one_grows(
    first: Path, tmp_path: Path, kind: str
) -> None:
    shared = tmp_path / "shared"
    second, third = clone(first, tmp_path), clone(first, tmp_path, "third")
    for folder in (second, third):
        run(folder, f"dvc cache dir --local {shared}")
        run(folder, "dvc config --local cache.shared group")
        run(folder, f"dvc config --local cache.type {kind}")
        run(folder, "dvc pull -q")
    files = [path for path in (second / CACHE).rglob("*") if not path.is_dir()]
    if kind == "symlink":
        assert all(str(shared) in str(path.readlink()) for path in files)
    else:
        assert all(path.stat().st_nlink > 2 for path in files)
    before, linked = state(shared), contents(third / CACHE, commits=True)
    assert not any(mode & 0o222 for _, mode, _ in before.values())

    (second / "configs/mini.yaml").write_text(
        (second / "configs/mini.yaml").read_text().replace("temperature: 2.0", "temperature: 3.0")
    )
    train_here(second)
    assert json.loads((second / "outputs/mini/distill/distill.json").read_text())
    assert state(shared) == before

    shutil.copytree(first / "data", second / "data")
    with inside(second) as config:
        extract(config, options(config, views=3))
    assert state(shared) == before
    assert contents(third / CACHE, commits=True) == linked
    grown, other = verify_cache(second / CACHE), verify_cache(third / CACHE)
    assert (grown.findings, other.findings) == ([], [])
    assert (grown.rows["valid"], other.rows["valid"]) == (42, 28)

    run(second, "dvc commit -f extract")  # as DVC's again, links all of them
    added = state(shared)
    assert before.items() <= added.items()
    assert verify_cache(second / CACHE).rows["valid"] == 42
