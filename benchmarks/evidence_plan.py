"""The evidence's students: each setting and seed with its config, its cache, and its folder."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from cache import TeacherCache, open_cache
from evidence_settings import Setting
from pipeline.config import Fixed8, Run
from pipeline.config_file import dump_config
from stages.ablation_results import Student
from stages.distill import check_cache
from stages.extract import Options, extract
from stages.feed import Part, used_part
from stages.variants import of_everything, variants_of

Row = Mapping[str, Any]
"""Of the CSV."""
Key = tuple[str, int]
"""Of a row: its setting and seed."""


@dataclass(frozen=True)
class Planned:
    """One student, what it learns from, and how its row begins."""

    setting: Setting
    student: Student
    cache: TeacherCache
    part: Part

    @property
    def key(self) -> Key:
        """Of its row."""
        return self.setting.name, self.student.seed


def config_sha256(run: Run) -> str:
    """Of a resolved config, the first 16 digits."""
    return hashlib.sha256(dump_config(run).encode()).hexdigest()[:16]


def changed(run: Run, setting: Setting) -> Run:
    """The config with a setting's changes."""
    content: dict[str, Any] = run.model_dump(mode="json")
    for name, value in setting.changes.items():
        *places, last = name.split(".")
        section = content
        for place in places:
            section = section[place]
        if last not in section:
            raise ValueError(f"{setting.name}: the config has no field {name}")
        section[last] = value
    return Run.model_validate(content)


def smaller(run: Run) -> Run:
    """The same run with one epoch."""
    recipe = run.distill.train.model_copy(update={"epochs": 1})
    return run.model_copy(update={"distill": run.distill.model_copy(update={"train": recipe})})


def resolved(run: Run, setting: Setting, base: TeacherCache) -> Run:
    """The config with a setting's changes, and what its own cache holds where it has one."""
    run = changed(run, setting)
    if not setting.own_cache:
        return run
    views = run.extract.views.model_copy(update={"count": run.distill_views})
    codecs = fixed8_of(base) if setting.fixed8 else {}
    section = run.extract.model_copy(
        update={"views": views, "clips": [run.distill.student], "codecs": codecs}
    )
    return run.model_copy(update={"extract": section})


def cache_of(run: Run, setting: Setting, base: TeacherCache, device: torch.device) -> TeacherCache:
    """What a setting reads; a cache of its own may have to be made, on that device.

    Raises:
        cache.CacheError: the cache was made from other inputs than the config names.
    """
    cache = base
    if setting.own_cache:
        asked = run.extract.model_dump_json()  # settings that ask for the same share a cache
        name = hashlib.sha256(asked.encode()).hexdigest()[:12]
        path = run.outputs / "evidence" / "caches" / name
        options = Options(
            out=path,
            views=run.extract.views.count,
            limit=None,
            decoders=0,
            batch_size=32,
            replace=False,
            device=device,
        )
        extract(run, options)  # what stands is checked, and left alone
        cache = open_cache(path, blocks=True)
    check_cache(of_everything(run), cache)
    return cache


def fixed8_of(base: TeacherCache) -> dict[str, Fixed8]:
    """Ranges that hold a tenth more than all values of the teachers' fields in a cache."""
    found = {}
    for name in ("vit/logits/action", "cnn/logits/action", "vit/pooled", "cnn/pooled", "residual"):
        low = high = 0.0
        for view in range(base.num_views):
            values = base.read(range(base.num_samples), [view] * base.num_samples, [name])[name]
            low, high = min(low, float(values.min())), max(high, float(values.max()))
        found[name] = Fixed8(
            codec="fixed8", low=float(math.floor(1.1 * low)), high=float(math.ceil(1.1 * high))
        )
    return found


def plan(
    run: Run,
    settings: Sequence[Setting],
    seeds: int,
    rows: Mapping[Key, Row],
    *,
    smoke: bool,
    device: torch.device,
) -> list[list[Planned]]:
    """The students that have no row yet, seed after seed: the tables fill evenly.

    A row may be of another machine's cache, which rounds differently: its column tells.

    Raises:
        ValueError: a row is of another config than the student of its name.
    """
    base = open_cache(run.cache_path, blocks=True)
    of_seed: list[list[Planned]] = [[] for _ in range(seeds)]
    folder = run.outputs / ("evidence-smoke" if smoke else "evidence")
    for setting in settings:
        own = resolved(run, setting, base)
        variant = variants_of(own)[setting.variant]
        if "distill.weighting" in setting.changes:  # which a variant has of its own
            variant = replace(variant, weighting=own.distill.weighting)
        runs = [variant.of(own, own.distill.seed + number) for number in range(seeds)]
        if smoke:
            runs = [smaller(one) for one in runs]
        cache = part = None
        for number, of_student in enumerate(runs):
            seed = of_student.distill.seed
            standing = rows.get((setting.name, seed))
            if standing is not None:
                _check(standing, of_student)
                continue
            cache = cache or cache_of(own, setting, base, device)
            part = part or used_part(of_everything(own), cache)
            belongs_to = {
                "cache_fingerprint": cache.fingerprint,
                "distill": of_student.distill.model_dump(mode="json"),
                "rows": {"samples": len(part.rows), "valid": int(part.valid.sum())},
                "online": setting.online,
            }
            place = folder / setting.name / f"seed-{seed}"
            student = Student(variant, seed, of_student, place, belongs_to)
            of_seed[number].append(Planned(setting, student, cache, part))
    return of_seed


def _check(row: Row, run: Run) -> None:
    if row["config_sha256"] != config_sha256(run):
        raise ValueError(
            f"the CSV has a row of {row['setting']}, seed {row['seed']}, by another config: take "
            "the rows of that setting out of it"
        )
