"""The house: imports point one way, and what the documents promise is there."""

from __future__ import annotations

import ast
import re
import runpy
from pathlib import Path

import numpy as np
import pytest

from cache import open_cache
from chain_making import options, write_config
from pipeline.config import Run
from stages.extract import extract

ROOT = Path(__file__).parents[1]
FOLDERS = ["cache", "pipeline", "pipeline/datasets", "stages", "benchmarks"]
MAY_IMPORT = {
    "cache": {"cache"},
    "pipeline": {"pipeline"},
    "stages": {"stages", "pipeline", "cache"},
}


def imports(path: Path) -> set[str]:
    """Top-level names of everything that a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_point_one_way(package: str) -> None:
    for path in (ROOT / package).rglob("*.py"):
        ours = imports(path) & MAY_IMPORT.keys()
        assert ours <= MAY_IMPORT[package], f"{path} imports {ours - MAY_IMPORT[package]}"


def test_storage_knows_no_torch() -> None:
    for path in (ROOT / "cache").rglob("*.py"):
        assert "torch" not in imports(path), path


def test_no_file_names_a_registry_host_or_pickles() -> None:
    for path in [*ROOT.glob("*.toml"), *ROOT.glob("*.txt"), ROOT / "Makefile"]:
        assert "pypi.org" not in path.read_text(), path
    for package in MAY_IMPORT:
        for path in (ROOT / package).rglob("*.py"):
            assert not imports(path) & {"pickle", "cloudpickle", "joblib", "dill"}, path


def test_every_dependency_has_a_pin() -> None:
    pins = {line.split("==")[0] for line in (ROOT / "constraints.txt").read_text().split("\n")}
    declared = re.findall(
        r'^    "([A-Za-z0-9_.-]+)(?:\[\w+\])?>=',
        (ROOT / "pyproject.toml").read_text(),
        re.MULTILINE,
    )
    assert declared
    assert not {name for name in declared if name not in pins}


@pytest.mark.parametrize(
    "folder", ["cache", "pipeline", "pipeline/datasets", "stages", "benchmarks"]
)
def test_the_architecture_page_knows_every_module(folder: str) -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    _, _, rest = page.partition(f"| `{folder}/` | |")
    table = rest.partition("\n\n")[0]
    listed = re.findall(r"^\| `(\w+\.py)`", table, re.MULTILINE)
    modules = [path.name for path in (ROOT / folder).glob("*.py") if path.name != "__init__.py"]
    assert listed == sorted(modules)


@pytest.mark.parametrize("splits", ["train", "train, test"])
def test_the_example_of_the_format_page_runs(
    mini: Run, capsys: pytest.CaptureFixture[str], splits: str
) -> None:
    run = write_config(Path.cwd(), ("splits: [train]", f"splits: [{splits}]"))
    extract(run, options(run))
    page = (ROOT / "docs" / "cache-format.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    script = Path("example.py")
    script.write_text(example.replace("outputs/demo/cache", str(mini.cache_path)))
    runpy.run_path(str(script))
    cache = open_cache(mini.cache_path)
    rows = np.arange(cache.num_samples)
    logits = cache.read(rows, np.zeros_like(rows))["vit/logits/action"]
    accuracy = (logits.argmax(1) == cache.samples["label_action"].to_numpy()).mean()
    assert f"accuracy of the ViT teacher on view 0: {accuracy}\n" in capsys.readouterr().out
