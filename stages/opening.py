"""The cache at `--out`: is it the wanted one, what must it grow by, and where does another one go.

Identity must agree; which samples, views and fields are there is extent, which grows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from cache import (
    OWN_FIELDS,
    STATUS_FIELD,
    CacheError,
    CacheWriter,
    Field,
    IdentityMismatch,
    Status,
    TeacherCache,
    is_cache,
    open_cache,
    open_writer,
)
from pipeline.config import Run
from pipeline.models import REGISTRY
from pipeline.samples import Samples
from stages.chunk_arrays import ExtractError
from stages.fields import cache_fields, note_clip_format, note_codecs
from stages.progress import console
from stages.recorded import (
    compare_samples,
    in_lines,
    tell_other_versions,
)
from stages.rows import Networks
from stages.stored_clips import clip_field, format_of, why_not
from stages.teachers import Teachers, added_identities, check_added, identity_for
from stages.wording import plural


@dataclass(frozen=True)
class Wanted:
    """What the config asks for.

    Attributes:
        run: the config.
        table: the samples table of today, all splits.
        listed: the samples that are to be cached, in a shuffled order.
        networks: all for which something is stored.
        views: how many of each sample.
        limit: the cache grows to at most so many samples.
        weights_known: whether the networks have the weights that rows are made with; a cache's
            own are taken for granted otherwise.
    """

    run: Run
    table: Samples
    listed: Samples
    networks: Networks
    views: int
    limit: int | None
    weights_known: bool = True

    def with_clips_of(self, stored: TeacherCache) -> Wanted:
        """What a cache stores of students is kept up: new rows have their clips too."""
        students = [name for name in REGISTRY if clip_field(name) in stored.fields]
        students = list(dict.fromkeys([*self.networks.students, *students]))
        section = self.run.extract.model_copy(update={"clips": students})
        return replace(
            self,
            run=self.run.model_copy(update={"extract": section}),
            networks=replace(self.networks, students=students),
        )

    @cached_property
    def teachers(self) -> dict[str, dict[str, Any]]:
        """What decides the outputs of the two teachers."""
        return self.networks.teachers.identities(self.run)

    @cached_property
    def added(self) -> dict[str, dict[str, Any]]:
        """What decides the outputs of the added teachers."""
        return added_identities(self.run, self.networks.added)

    def fields(self, stored: TeacherCache | None = None) -> list[Field]:
        """The arrays, where some stand already fitting to these."""
        return cache_fields(self.run, self.table, self.networks, stored.fields if stored else {})

    @property
    def first_samples(self) -> Samples:
        """The samples of a cache that is made anew."""
        return self.listed.take(range(len(self.listed))[: self.limit])

    def new_samples(self, stored: TeacherCache) -> Samples:
        """The samples that a cache lacks, as far as the limit allows."""
        ids = stored.samples["sample_id"].combine_chunks()
        known = pc.is_in(self.listed.table["sample_id"], value_set=ids).to_numpy()
        new = np.flatnonzero(~known)
        if self.limit is not None:
            new = new[: max(0, self.limit - stored.num_samples)]
        return self.listed.take(new)

    def missing(self, stored: TeacherCache | None) -> dict[str, NDArray[np.bool_]]:
        """Which rows of the cache, once it has grown, are to be made: of each field (n, views)."""
        fields = [*OWN_FIELDS, *self.fields(stored)]
        if stored is None:
            here = np.ones((len(self.first_samples), self.views), bool)
            return {field.name: here for field in fields}
        there = stored.num_samples
        if self.limit is not None:  # whole chunks
            starts = stored.layout.chunk_starts
            there = int(starts[np.searchsorted(starts[:-1], self.limit)])
        shape = (
            there + len(self.new_samples(stored)),
            max(self.views, stored.num_views),
        )
        missing = {field.name: np.ones(shape, bool) for field in fields}
        there_too = {field.name for field in OWN_FIELDS} | stored.fields.keys()
        for name in missing.keys() & there_too:
            made = stored.status_of(name)[:there] != Status.MISSING
            missing[name][:there, : stored.num_views] = ~made
        return missing

    def teacher_views(self, missing: Mapping[str, NDArray[np.bool_]]) -> dict[str, int]:
        """How many views each teacher has to see, of what `missing` says."""
        pair = int(missing[STATUS_FIELD.name].sum())
        of_added = {name: int(missing[f"{name}/status"].sum()) for name in self.networks.added}
        return {**dict.fromkeys(Teachers._fields, pair), **of_added}

    def unscored(self, stored: TeacherCache | None) -> list[str]:
        """The teachers of which the cache does not know how accurate they are."""
        passed = stored.provenance.get("accuracy", {}) if stored else {}
        return [name for name in self.networks.by_name if name not in passed]

    def check(self, stored: TeacherCache) -> None:
        """Check that a cache is this one, or can grow to be it.

        Raises:
            cache.IdentityMismatch: it was made from other inputs.
            ExtractError: a sample of it is another one now, or it lacks what cannot be added.
        """
        more = len(self.new_samples(stored))
        teachers = self.teachers if self.weights_known else self._with_weights_of(stored)
        identity = identity_for(self.run, self.table, teachers, stored, more=more)
        self._check_identity(stored, identity)
        if self.weights_known:
            check_added(stored, self.added)
        self._check_samples(stored)
        for name in self.networks.students:
            field = stored.fields.get(clip_field(name))
            if field and not format_of(field, name):
                raise ExtractError(
                    f"{stored.place}: {why_not(field, name)}. Leave it out of extract.clips, give "
                    "another --out, or --replace, which moves this cache aside"
                )
        addable = [clip_field(name) for name in self.networks.students]
        absent = [
            field.name
            for field in self.fields(stored)
            if field.name not in (*stored.fields, *addable) and _group(field) not in self.added
        ]
        if absent:
            raise ExtractError(
                f"{stored.place} was made without {', '.join(absent)}, which cannot be added. Give "
                "another --out, or --replace, which moves this cache aside"
            )

    def _with_weights_of(self, stored: TeacherCache) -> dict[str, dict[str, Any]]:
        """What decides the outputs of the two teachers, if they have the weights of a cache."""
        theirs = stored.identity["teachers"]
        return {
            role: {**one, "weights_sha256": theirs[role]["weights_sha256"]}
            for role, one in self.teachers.items()
        }

    def _check_identity(self, stored: TeacherCache, identity: dict[str, Any]) -> None:
        try:
            stored.check_identity(identity)
        except IdentityMismatch as error:
            ((name, fitted, wanted), *more) = error.differences
            if name != "projection.samples" or more:
                raise
            raise ExtractError(
                f"the projection of {stored.place} was fitted on {fitted} samples, all that there "
                f"were; extract.projection.samples now takes {wanted}, and a projection is never "
                f"fitted again. Go on with `samples: {fitted}` there, or give another --out, or "
                "--replace, which moves this cache aside"
            ) from error

    def _check_samples(self, stored: TeacherCache) -> None:
        """The cache's samples are among those of today: same ids, files, stretches and labels."""
        lost, changed = compare_samples(stored.samples, self.table.table)
        if lost:
            raise ExtractError(
                f"{stored.place} holds {len(lost)} samples that the samples table does not list, "
                f"the first is {lost[0]}. Prepare the samples table that it was made from, use "
                "another --out, or --replace"
            )
        if changed:
            raise ExtractError(
                f"{stored.place} was made from other samples:\n{in_lines(changed)}\n"
                "Prepare the samples table that it was made from, use another --out, or --replace."
            )


def _grow(writer: CacheWriter, stored: TeacherCache, wanted: Wanted) -> None:
    """Make room for what a cache lacks; not a byte of a row is touched."""
    out, fields = stored.place, wanted.fields(stored)
    note_codecs(stored.path, stored.fields, fields)
    note_clip_format(stored.path, stored.fields, wanted.run, wanted.networks.students)
    if stored.chunk_samples != wanted.run.extract.chunk_samples:
        console.print(
            f"{out}: its chunks stay of {stored.chunk_samples} samples; extract.chunk_samples "
            f"({wanted.run.extract.chunk_samples}) counts when a cache is made"
        )
    if wanted.limit is not None and wanted.limit < stored.num_samples:
        console.print(f"{out} has {stored.num_samples} samples: --limit {wanted.limit} drops none")
    new = wanted.new_samples(stored)
    if len(new):
        console.print(f"{out} grows by {plural(len(new), 'sample')}")
        writer.add_samples(new.table)
    if wanted.views > writer.num_views:
        console.print(f"{out} grows from {writer.num_views} to {wanted.views} views")
        writer.add_views(wanted.views - writer.num_views)
    absent = [field for field in fields if field.name not in stored.fields]
    clips = [field for field in absent if _group(field) not in wanted.added]
    if clips:
        console.print(f"{out} grows by {', '.join(field.name for field in clips)}")
        writer.add_fields(clips)
    for name, identity in wanted.added.items():
        if name not in stored.added:
            console.print(f"{out} grows by the teacher {name}")
            its = [field for field in absent if _group(field) == name]
            writer.add_fields(its, {name: identity})


def open_wanted(out: Path, wanted: Wanted) -> CacheWriter:
    """Open the cache at `out` for writing, and make room for what it lacks.

    Raises:
        cache.IdentityMismatch: it was made from other inputs.
        ExtractError: a sample of it is another one now, or it lacks what cannot be added.
        cache.CacheError: it is damaged, or is being written.
    """
    stored = open_cache(out)
    wanted.check(stored)
    tell_other_versions(stored)
    writer = open_writer(out, identity=stored.identity)
    try:
        _grow(writer, stored, wanted)
    except BaseException:
        writer.close()
        raise
    return writer


def put_in_place(out: Path, wanted: Wanted) -> None:
    """Move another cache at `out` aside, and bring the wanted one back if it stands aside.

    Raises:
        cache.CacheError: the cache at `out` is damaged.
    """
    if is_cache(out):
        stored = open_cache(out)
        if _is_wanted(stored, wanted):
            return
        mark = stored.fingerprint[:12]
        aside, number = out.with_name(f"{out.name}-{mark}"), 1
        while aside.exists():
            number += 1
            aside = out.with_name(f"{out.name}-{mark}-{number}")
        out.rename(aside)
        console.print(f"{out} held another cache, {mark}: moved to {aside}")
    elif out.exists():
        return  # something else, which is never moved
    for other in sorted(out.parent.glob(f"{out.name}-*")):
        try:
            brought = _is_wanted(open_cache(other), wanted)
        except CacheError:  # none, or a damaged one: it stays where it is
            continue
        if brought:
            other.rename(out)
            console.print(f"{other} is the cache that is wanted: moved back to {out}")
            return


def _is_wanted(stored: TeacherCache, wanted: Wanted) -> bool:
    try:
        wanted.check(stored)
    except (IdentityMismatch, ExtractError):
        return False
    return True


def _group(field: Field) -> str:
    return field.name.partition("/")[0]
