"""The model card of an export, as Markdown: data, teachers, recipe, results, limits, licences."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from pipeline.config import Run, Teacher
from pipeline.models import VideoModel
from pipeline.samples import Samples
from pipeline.weights import PUBLISHED
from stages import wording

_KINDS = {
    "onnx": "ONNX, float32",
    "int8": "ONNX, 8 bits (QDQ)",
    "pt2": "`torch.export`, float32: `torch.export.load(…).module()`",
}
_FILTERS = ("count", "figure", "percent", "plural", "points", "scaled")
# Only what is certain; all else says `check`.
_DATA = {
    "figures": (
        "Little people rendered by dualkd (`pipeline/datasets/figures.py`): of no use for anything "
        "but trying it out.",
        "- Data: rendered by dualkd, no outside data. Apache-2.0, as dualkd.",
    ),
    "folder": (
        "Videos of your own.",
        "- Data: your own videos; whether they may be used so, and what of the model may be "
        "passed on: check.",
    ),
    "k400": (
        "Kinetics-400.",
        "- Data: Kinetics-400's annotations are CC BY 4.0 (Google). Its videos belong to those who "
        "uploaded them to YouTube, each under terms of its own: check.",
    ),
    "hmdb51": (
        "HMDB51.",
        "- Data: HMDB51 is given out under CC BY 4.0; its clips come from films and web videos "
        "whose own rights stay with their owners: check.",
    ),
    "epic100": (
        "EPIC-KITCHENS-100.",
        "- Data: EPIC-KITCHENS-100 is CC BY-NC 4.0: not for commercial use.",
    ),
}
_K400_WEIGHTS = (
    "They were trained on Kinetics-400: annotations CC BY 4.0, videos of their uploaders: check."
)
_LIBRARIES = {
    "torchvision": "torchvision's code is BSD-3-Clause; of pre-trained weights it says that they "
    f"may have terms of their own, derived from their data: check. {_K400_WEIGHTS}",
    "pytorchvideo": "pytorchvideo's code is Apache-2.0; its model zoo names no licence for the "
    f"weights that we know of: check. {_K400_WEIGHTS}",
    "timm": "timm's code is Apache-2.0; each of its weights has terms of its own, on its page at "
    "the Hugging Face hub: check.",
}


def model_card(run: Run, samples: Samples, model: VideoModel, found: Mapping[str, Any]) -> str:
    """Fill the template `model_card.md`.

    Args:
        run: the config.
        samples: the whole table.
        model: the student.
        found: what `export.json` holds.
    """
    environment = Environment(  # Markdown, and not a page that a browser runs
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=False,  # noqa: S701
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    for name in _FILTERS:
        environment.filters[name] = getattr(wording, name)
    metrics = _read(run.outputs / "evaluate" / "metrics.json")
    student = found["student"]
    fits = metrics.get(student, {}).get("weights_sha256") == found["weights_sha256"]
    scores = {role: metrics[role] for role in _roles(metrics)} if fits else {}
    what, licence = _DATA[run.prepare.source]
    operators = found["backbone"]["export"]["operators"]
    return environment.get_template("model_card.md").render(
        found=found,
        made="distilled" if student == "student" else "trained from labels alone",
        how=_how(run, student),
        heads=" and ".join(f"{number} classes ({head})" for head, number in model.heads.items()),
        command=f"dualkd export --dataset {run.name}"
        + ("" if student == "student" else f" --student {student}"),
        kinds=_KINDS,
        clip=model.clip,
        span=wording.duration(model.clip.span_sec),
        sizes=model.heads,
        data={"what": what, "licence": licence},
        distill=run.distill,
        splits=samples.splits(),
        metrics=metrics,
        scores=scores,
        teachers=[_teacher(run, role, metrics) for role in run.distill.teachers],
        recipe=_recipe(run, student),
        config=_yaml(run, student),
        nodes=sum(operators.values()),
        operators=", ".join(f"{number} {name}" for name, number in operators.items()),
        quantisation=found.get("quantisation"),
        licences=_licences(run),
    )


def _roles(metrics: Mapping[str, Any]) -> list[str]:
    """The networks that were scored."""
    return [role for role, one in metrics.items() if isinstance(one, dict) and "top1" in one]


def _how(run: Run, student: str) -> str:
    if student == "baseline":
        return "trained from labels alone: the baseline that its distilled twin is compared with"
    vit, cnn = (run.teachers[role].model for role in run.distill.teachers)
    return f"distilled from two teachers, `{vit}` and `{cnn}`"


def _recipe(run: Run, student: str) -> str:
    """The method in a sentence."""
    if student == "baseline":
        return "Cross-entropy alone, with the training below (its weights of other terms are 0)."
    terms = [name for name, value in run.distill.weights.model_dump().items() if value]
    return (
        f"Cross-entropy with {', '.join(terms)}; teachers weighed by {run.distill.weighting}, "
        f"temperature {run.distill.temperature:g}. docs/method.md has the formulas."
    )


def _yaml(run: Run, student: str) -> str:
    """The section `distill` of the config, a line each, as the config file could have it."""
    content = run.distill.model_dump(mode="json", exclude_none=True)
    if student == "baseline":
        content["weights"] = dict.fromkeys(content["weights"], 0.0)
    lines = [f"  {name}: {json.dumps(value)}" for name, value in content.items()]
    return "\n".join(["distill:", *lines, ""])


def _teacher(run: Run, role: str, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """What is known of a teacher: of the evaluation, else of `teach`."""
    teacher = run.teachers[role]
    scored = metrics.get(role) or _read(run.outputs / "teach.json").get(role) or {}
    return {
        "role": role,
        "model": teacher.model,
        "weights": teacher.weights,
        "sha256": scored.get("weights_sha256"),
        "top1": scored.get("top1"),
    }


def _licences(run: Run) -> list[str]:
    """A note for each library whose published weights the teachers are, or began with."""
    notes = []
    for role in run.distill.teachers:
        teacher = run.teachers[role]
        start = teacher.start if isinstance(teacher, Teacher) else None
        library = teacher.model.partition("/")[0]
        if PUBLISHED in (teacher.weights, start):
            verb = "are" if teacher.weights == PUBLISHED else "began with"
            notes.append(
                f"Teacher `{role}`: its weights {verb} those that were published for "
                f"`{teacher.model}`. {_LIBRARIES[library]}"
            )
        else:
            notes.append(
                f"Teacher `{role}`: its weights are the file `{teacher.weights}`; under which "
                "terms, and trained on what: check where the file came from."
            )
    return notes


def _read(path: Path) -> dict[str, Any]:
    """A JSON file of another stage; empty where it is not there."""
    if not path.is_file():
        return {}
    content: dict[str, Any] = json.loads(path.read_text())
    return content
