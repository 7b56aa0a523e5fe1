"""Reading a config: one YAML file is one run, parsed once into frozen objects.

Every mistake is reported at once, each with its field, what it got and what it expected.
"""

from __future__ import annotations

import re
from io import StringIO
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipeline.config import Run
from pipeline.config_prepare import KNOWN_SPLITS

# The sections that score a split after each epoch, and where in them the recipes are.
_VALIDATED = {"teach": (("vit", "train"), ("cnn", "train")), "distill": (("train",),)}


class ConfigError(ValueError):
    """A config cannot be used; the message lists every mistake in it."""


def config_path(name: str) -> Path:
    """The config of a run, `configs/<name>.yaml` below the working folder.

    Raises:
        ConfigError: there is none; the message lists the configs that there are.
    """
    folder = Path("configs")
    path = folder / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in folder.glob("*.yaml"))) or "none"
        raise ConfigError(
            f"no config for dataset {name!r}: looked for {path.absolute()}. Configs here: {known}"
        )
    return path


def load_config(path: Path) -> Run:
    """Read, check and freeze one run.

    Raises:
        ConfigError: the file is missing, is no YAML mapping, or holds mistakes, all listed.
    """
    try:
        content: Any = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the config {path}: {error.strerror}") from error
    except (YAMLError, UnicodeDecodeError) as error:
        # ruamel adds how to allow keys that occur twice: no way out here.
        reason = str(error).partition("\n\nTo suppress")[0]
        raise ConfigError(f"{path} is not valid YAML: {reason}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected a mapping of sections, got {type(content).__name__}")
    mistakes = _unknown_splits(content) + _unknown_teachers(content) + _unfit_teaching(content)
    mistakes += _unfit_validation(content)
    try:
        run = Run.model_validate({**content, "name": path.stem})
    except ValidationError as error:
        mistakes = [_mistake(detail) for detail in error.errors()] + mistakes
    if "name" in content:
        mistakes.append(f"  name: got {content['name']!r}, expected nothing: it is the file's own")
    if mistakes:
        count = f"{len(mistakes)} mistake{'s' if len(mistakes) > 1 else ''}"
        raise ConfigError("\n".join([f"{count} in {path}:", *mistakes]))
    return run


def dump_config(run: Run) -> str:
    """A run as YAML, every default written out; `load_config` reads it back."""
    stream = StringIO()
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = None  # lists and small mappings in a line
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.dump(run.model_dump(mode="json", exclude={"name"}), stream)
    return stream.getvalue()


def _unknown_splits(content: dict[str, Any]) -> list[str]:
    """Splits that a stage asks for and `prepare` does not make; of a folder they are not known.

    Read from the raw mapping, whose sections may be anything: a mistake between two sections is
    reported together with the mistakes inside them.
    """
    source, made = _raw(content, "prepare", "source"), _raw(content, "prepare", "splits")
    if isinstance(source, str) and source in KNOWN_SPLITS:
        known, owner = list(KNOWN_SPLITS[source]), f"the source {source!r}"
    elif isinstance(made, dict):
        known, owner = list(made), "prepare.splits"
    else:
        return []
    expected = f"a split of {owner} ({', '.join(map(str, known))})"
    return [
        f"  {name}: got {split!r}, expected {expected}"
        for name, split in splits_asked(content)
        if split not in known
    ]


def splits_asked(content: dict[str, Any]) -> list[tuple[str, str]]:
    """The splits that a config's mapping names, each with the field that names it."""
    asked = [("evaluate.split", _raw(content, "evaluate", "split"))]
    asked += [(f"{name}.validation", _raw(content, name, "validation")) for name in _VALIDATED]
    for section in ("extract", "distill", "teach"):
        asked += [(f"{section}.splits", name) for name in _listed(content, section, "splits")]
    return [(field, split) for field, split in asked if isinstance(split, str)]


def _unknown_teachers(content: dict[str, Any]) -> list[str]:
    """Teachers that `distill` asks for and no section names."""
    added = _raw(content, "extract", "added")
    known = ["vit", "cnn", *(added if isinstance(added, dict) else ())]
    return [
        f"  distill.teachers: got {name!r}, expected one of {', '.join(map(str, known))} "
        "(extract.added names more)"
        for name in _listed(content, "distill", "teachers")
        if name not in known
    ]


def _unfit_teaching(content: dict[str, Any]) -> list[str]:
    """Fields of `teach` that do not go together, or not with the source of the dataset."""
    mistakes = []
    pool, splits = _raw(content, "teach", "pool"), _raw(content, "teach", "splits")
    source = _raw(content, "prepare", "source")
    if pool is not None and splits is not None:
        mistakes.append(f"  teach.pool: got {pool!r} beside teach.splits, expected one of the two")
    elif pool is not None and isinstance(source, str) and source != "figures":
        mistakes.append(
            f"  teach.pool: got {pool!r}, expected nothing: only the source 'figures' renders "
            "videos; teach.splits names splits to train on"
        )
    return mistakes


def _unfit_validation(content: dict[str, Any]) -> list[str]:
    """Splits that are trained on and scored; the best epoch where nothing tells which it is."""
    mistakes = []
    for section, recipes in _VALIDATED.items():
        validation = _raw(content, section, "validation")
        if validation is not None and validation in _listed(content, section, "splits"):
            mistakes.append(
                f"  {section}.validation: got {validation!r}, expected a split that is not in "
                f"{section}.splits"
            )
        for place in recipes:
            recipe: Any = content.get(section)
            for name in place:
                recipe = recipe.get(name) if isinstance(recipe, dict) else None
            keep = recipe.get("keep") if isinstance(recipe, dict) else None
            if keep == "best" and validation is None:
                mistakes.append(
                    f"  {'.'.join([section, *place, 'keep'])}: got 'best', expected 'last', or a "
                    f"split in {section}.validation to tell the best epoch by"
                )
    return mistakes


def _raw(content: dict[str, Any], section: str, name: str) -> Any:
    fields = content.get(section)
    return fields.get(name) if isinstance(fields, dict) else None


def _listed(content: dict[str, Any], section: str, name: str) -> list[Any]:
    names = _raw(content, section, name)
    return names if isinstance(names, list) else []


_EXPECTED = {
    "missing": "a value",
    "extra_forbidden": "no such field (misspelt?)",
    "invalid_key": "a name",
    "model_type": "a section with fields of its own",
    "dict_type": "a mapping",
    "model_attributes_type": "a section with fields of its own",
    "union_tag_not_found": "a section with the field {discriminator}",
    "union_tag_invalid": "one of {expected_tags}",
}


def _mistake(detail: Any) -> str:
    """One mistake as `field: got …, expected …`."""
    parts = [str(part) for part in detail["loc"] if part != "[key]"]
    if parts[:1] == ["prepare"]:
        del parts[1:2]  # the source: pydantic's word for which of the classes it is
    got = "nothing" if detail["type"] == "missing" else repr(detail["input"])
    if detail["type"] == "union_tag_invalid":  # the field that chooses, not the whole section
        chooser = detail["ctx"]["discriminator"].strip("'")
        parts.append(chooser)
        got = repr(detail["input"][chooser])
    name = ".".join(parts)
    expected = re.sub(r"^(Value error, |Input should be )", "", detail["msg"])
    expected = re.sub(r"^(String|Tuple|List) should", "a value that should", expected)
    if detail["type"] in _EXPECTED:
        expected = _EXPECTED[detail["type"]].format(**detail.get("ctx", {}))
    return f"  {name}: got {got}, expected {expected}"
