"""One attempt of a push: what lacks is sent, then one record makes all of it appear."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache.commits import Commits, gather, read_commits
from cache.layout import (
    CHECKSUM_BYTES,
    COMMITS,
    MANIFEST,
    METADATA,
    Layout,
    own_path,
    read_file,
    repair_hint,
    wrong_bytes,
)
from cache.manifest import Digests, copy_empty
from cache.metadata import read_layout
from cache.record import Record, record_of, write_record
from cache.remote import Advance, Metered, in_parallel
from cache.schema import STATUS_FIELD, DamagedError
from cache.sealed import seal
from cache.shelf import Shelved, find_cache
from cache.shelf_mending import check_whole, copy_mended
from cache.source import dataset_of
from cache.union import (
    ConflictError,
    Key,
    add_commit,
    all_commits,
    differing,
    grow_to_hold,
    in_words,
    parts_of,
    rows_of,
    without,
)
from cache.writer import open_writer


class Round:
    """One attempt, against the records that stood when it began.

    `_state` is the cache as it will be there, without chunk files.
    """

    def __init__(self, layout: Layout, found: Shelved, state: Path) -> None:
        self._mine, self._found = layout, found
        self._there = found.shelf.below(layout.fingerprint)
        self._records: tuple[Record, ...] = ()
        self._left_out: list[str] = []
        self.bytes = self.files = self.standing = 0
        self.coverage = 0.0
        if found.records:
            self._records, self._left_out = copy_mended(found, layout, state)
        else:
            (state / COMMITS).mkdir(parents=True)
            copy_empty(layout.path, state)
        with open_writer(state, identity=layout.identity) as writer:
            grow_to_hold(writer, layout)
        self._state = read_layout(state)
        self._commits = all_commits(layout)
        self._held = gather(self._state, self._commits)
        self._stands = read_commits(self._state)
        whole = all(mask.all() for mask in self._held.present.values())
        check_whole(self._there, self._left_out, layout, whole=whole)

    def meet(self, *, ours: bool) -> None:
        """Refuse rows that differ there, or take them out of what is there."""
        keys = differing(self._state, self._held, self._stands)
        if not keys:
            return
        told = f"{self._there.url} holds other rows than {self._mine.path}:\n"
        told += in_words(self._state, keys)
        if not ours:
            raise ConflictError(
                f"{told}\nNothing was sent. `pull --theirs` takes those of there, `push --ours` "
                "puts yours in their place"
            )
        replaced = rows_of(self._state, self._stands, keys)
        lacking = [key for key in replaced if not self._held.present[key[0]][key[1:]]]
        if lacking:
            raise ConflictError(
                f"{told}\nOf these rows {self._mine.path} lacks other fields, which would be lost "
                f"there:\n{in_words(self._state, lacking)}\nPull or extract them first"
            )
        without(self._state, replaced, self._read_status_there)
        self._stands = read_commits(self._state)

    def send(self, jobs: int, metered: Metered, *, check: bool) -> None:
        """Send the chunk files that are not there, or not as they were committed."""
        found = self._there.sizes("")
        todo, proved = [], []
        for name, present in self._held.present.items():
            for chunk, view in np.argwhere(present).tolist():
                key = (name, chunk, view)
                about = found.get(self._state.key_of(key))
                size = int(self._held.sizes[name][chunk, view])
                whole = about is not None and about.get("size") == size
                if whole and self._stands.present[name][chunk, view] and not check:
                    self.standing += 1
                elif whole:  # of a push that was killed, or to be checked
                    proved.append(key)
                else:
                    todo.append(key)
        for key, sound in in_parallel(
            lambda key: self._holds(key, found[self._state.key_of(key)]), proved, jobs
        ):
            self.standing += sound
            todo += [] if sound else [key]
        with metered(sum(self._size(key) for key in todo)) as advance:
            for _ in in_parallel(lambda key: self._upload(key, advance), todo, jobs):
                self.files += 1
        self.bytes += sum(self._size(key) for key in todo)

    def publish(self, author: str, about: Callable[[Layout, Commits], dict[str, Any]]) -> str:
        """Write metadata, commits and the record; returns its name."""
        folder = self._state.path
        new = {
            name: mask & ~self._stands.present[name] for name, mask in self._held.present.items()
        }
        for part in parts_of(self._commits, new):
            content = part.content(self._mine, self._read_status_here)
            add_commit(folder, part.commit.chunk, content)
        commits = read_commits(self._state)
        self.coverage = commits.coverage(self._state, self._state.fields)
        record = record_of(
            folder,
            dataset=dataset_of(self._state.identity),
            fingerprint=self._state.fingerprint,
            author=author,
            replaces=sorted(self._before()),
            about=about(self._state, commits),
        )
        told = self._records[0] if self._records else None
        if told and self._is_all_there(told, record):
            self._clear_away(told)
            return told.name
        self._write_metadata(record, told)
        name = write_record(self._found.shelf, record)
        self.bytes += len(seal(record.to_json()))
        self._clear_away(replace(record, name=name))
        return name

    def _before(self) -> set[str]:
        """The names of all records that a new one takes the place of.

        Those that are gone as well: one may come back, as from a backup, or where it was removed
        while somebody wrote it.
        """
        listed = (*self._found.records, *self._found.replaced)
        return {record.name for record in listed}.union(*(record.replaces for record in listed))

    def _is_all_there(self, told: Record, record: Record) -> bool:
        """Whether a push brought nothing, and one record says all."""
        same = told.digests == record.digests and told.commits == record.commits
        alone = self._found.names == [told.name]
        return (
            same and alone and not self._left_out and self._before() <= {*told.replaces, told.name}
        )

    def _clear_away(self, standing: Record) -> None:
        """Remove the records that one has replaced, then the commits that none names any more."""
        listed = (*self._found.records, *self._found.replaced)
        for record in sorted(listed, key=lambda record: (record.time, record.name)):
            if record.name != standing.name:
                self._found.shelf.remove(record.name)
        gone = self._found.commits - standing.commits.keys()
        if gone:  # a record that could not be removed, or that came meanwhile, may need them
            for key in gone - find_cache(self._found.shelf, self._mine.fingerprint).commits:
                self._there.remove(key)

    def _write_metadata(self, record: Record, told: Record | None) -> None:
        """Bring the cache's folder there to the same state, so that it can be read as it lies.

        In the order in which a cache grows on a disk; see `cache.manifest`.
        """
        old = {} if told is None else told.digests
        new = record.digests
        changed = [name for name, digest in new.items() if old.get(name) != digest]
        known = () if told is None else told.commits
        commits = [name for name in record.commits if name not in known]
        if told is None:  # nothing appears before the root, which comes last
            self._write_all(commits)
        elif changed:
            self._write_manifest({name: _either(old.get(name), new[name]) for name in new})
        # Tables first; of views the statuses tell, of all else the root.
        ranks = {METADATA: 3, f"{STATUS_FIELD.name}/{METADATA}": 2}
        order = sorted(changed, key=lambda name: ranks.get(name, int(name in record.metadata)))
        if told is None:
            self._write_manifest({name: [digest] for name, digest in new.items()})
            self._write_all(order)
            return
        self._write_all(order)
        if changed:
            self._write_manifest({name: [digest] for name, digest in new.items()})
        self._write_all(commits)

    def _write_all(self, names: Iterable[str]) -> None:
        for name in names:
            self._write(name, (self._state.path / name).read_bytes())

    def _write_manifest(self, files: dict[str, Digests]) -> None:
        self._write(MANIFEST, seal({"files": files}))

    def _write(self, key: str, content: bytes) -> None:
        self._there.write(key, content)
        self.bytes += len(content)

    def _upload(self, key: Key, advance: Advance) -> None:
        name = self._state.key_of(key)
        path = own_path(self._mine.path, name)
        size = self._size(key)
        wrong = wrong_bytes(path, size, int(self._held.checksums[key[0]][key[1:]]))
        if wrong:
            raise DamagedError(
                f"{path} {wrong}. Nothing of it appears at {self._there.url}. "
                f"{repair_hint(self._mine.path)}"
            )
        self._there.upload(path, name, advance)

    def _holds(self, key: Key, about: dict[str, Any]) -> bool:
        name = self._state.key_of(key)
        return self._there.holds(name, own_path(self._mine.path, name), about)

    def _size(self, key: Key) -> int:
        return int(self._held.sizes[key[0]][key[1:]])

    def _read_status_here(self, name: str, chunk: int, view: int) -> NDArray[np.uint8]:
        data, _ = read_file(self._mine.path / self._mine.key_of((name, chunk, view)))
        rows = len(self._mine.sample_range(chunk))
        return self._mine.decode(self._mine.fields[name], data)[:rows]

    def _read_status_there(self, name: str, chunk: int, view: int) -> NDArray[np.uint8]:
        data = self._there.read(self._state.key_of((name, chunk, view)))[:-CHECKSUM_BYTES]
        rows = len(self._state.sample_range(chunk))
        return self._state.decode(self._state.fields[name], data)[:rows]


def _either(old: str | None, new: str) -> Digests:
    """What the manifest says of a file while it is being written."""
    return [new] if old == new else [old, new]
