"""The evidence's students: each setting and seed with its config, its cache, and its folder."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Planned:
    """One student, what it learns from, and how its row begins."""

    setting: Setting
    student: Student
    cache: TeacherCache
    part: Part

    @property
    def key(self) -> tuple[str, int]:
        """Of its row."""
        return self.setting.name, self.student.seed

    @property
    def config_sha256(self) -> str:
        """Of the resolved config."""
        return hashlib.sha256(dump_config(self.student.run).encode()).hexdigest()[:16]


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


def with_cache(run: Run, setting: Setting, base: TeacherCache) -> tuple[Run, TeacherCache]:
    """What a setting reads, and the config that makes it; a cache of its own may have to be made.

    Raises:
        cache.CacheError: the cache was made from other inputs than the config names.
    """
    if not setting.own_cache:
        check_cache(of_everything(run), base)
        return run, base
    path = run.outputs / "evidence" / "caches" / setting.name
    views = run.extract.views.model_copy(update={"count": run.distill_views})
    codecs = fixed8_of(base) if setting.fixed8 else {}
    section = run.extract.model_copy(
        update={"views": views, "clips": [run.distill.student], "codecs": codecs}
    )
    run = run.model_copy(update={"extract": section})
    options = Options(
        out=path,
        views=views.count,
        limit=None,
        decoders=0,
        batch_size=32,
        replace=False,
        device=torch.device("cpu"),
    )
    extract(run, options)  # what stands is checked, and left alone
    cache = open_cache(path, blocks=True)
    check_cache(of_everything(run), cache)
    return run, cache


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


def plan(run: Run, settings: Sequence[Setting], seeds: int, *, smoke: bool) -> Iterator[Planned]:
    """All students, seed after seed: the tables fill evenly."""
    base = open_cache(run.cache_path, blocks=True)
    made = []
    for setting in settings:
        own = changed(run, setting)
        own, cache = with_cache(smaller(own) if smoke else own, setting, base)
        made.append((setting, own, cache, used_part(of_everything(own), cache)))
    folder = run.outputs / ("evidence-smoke" if smoke else "evidence")
    for number in range(seeds):
        for setting, own, cache, part in made:
            seed = own.distill.seed + number
            variant = variants_of(own)[setting.variant]
            of_seed = variant.of(own, seed)
            belongs_to = {
                "cache_fingerprint": cache.fingerprint,
                "distill": of_seed.distill.model_dump(mode="json"),
                "rows": {"samples": len(part.rows), "valid": int(part.valid.sum())},
                "online": setting.online,
            }
            place = folder / setting.name / f"seed-{seed}"
            yield Planned(setting, Student(variant, seed, of_seed, place, belongs_to), cache, part)
