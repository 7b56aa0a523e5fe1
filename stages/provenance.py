"""What made the figures of the page: weights, cache, projection, software, config."""

from __future__ import annotations

import importlib.metadata
import io
import platform
from typing import Any

from ruamel.yaml import YAML

from pipeline.config import Run
from stages.report_inputs import TITLES, Inputs
from stages.wording import percent

_PACKAGES = ("dualkd", "torch", "torchvision", "pytorchvideo", "timm", "av", "numpy", "zarr")


def provenance(inputs: Inputs) -> list[tuple[str, str, str]]:
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
            ", ".join(_said(name, value) for name, value in cache["provenance"].items()),
            "",
        ),
        ("Scored", scored, ""),
        ("Software of this page", _versions(), ""),
    ]


def _said(name: str, value: Any) -> str:
    """One thing that a cache records of its making, in words."""
    if name == "accuracy" and isinstance(value, dict):
        scores = [
            f"{role} {percent(of_role['top1'])}"
            for role, of_role in value.items()
            if isinstance(of_role, dict) and isinstance(of_role.get("top1"), float)
        ]
        return f"accuracy of the teachers then: {', '.join(scores) or 'not measured'}"
    return f"{name} {value}"


def _versions() -> str:
    versions = [f"python {platform.python_version()}"]
    for package in _PACKAGES:
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return ", ".join(versions)


def config_text(run: Run) -> str:
    """The config as YAML, with every default filled in."""
    buffer = io.StringIO()
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = None
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.width = 96
    yaml.dump(run.model_dump(mode="json"), buffer)
    return buffer.getvalue()
