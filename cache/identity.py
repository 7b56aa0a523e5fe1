"""Identities: what decides the values of a cache's rows; their fingerprint and differences."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cache.schema import CacheError

_SHOWN_DIFFERENCES = 20
_SHOWN_CHARACTERS = 80
_EXTRACT_ANOTHER = (
    "Bring back what it was made from, or make another cache: extract with another --out, or with "
    "--replace, which moves this one aside."
)


class _Absent:
    """Stands in a difference for a value that one side does not have."""

    def __repr__(self) -> str:
        return "(absent)"

    def __reduce__(self) -> str:
        return "ABSENT"


ABSENT = _Absent()


class IdentityMismatch(CacheError):  # noqa: N818  (it reads as a noun)
    """The cache was made from other inputs than those at hand.

    Attributes:
        differences: (dotted field, the cache's value, the wanted value), see
            `identity_differences`.
        way_out: what to do.
    """

    def __init__(
        self,
        path: Path | str,
        differences: Sequence[tuple[str, Any, Any]],
        way_out: str = _EXTRACT_ANOTHER,
    ) -> None:
        """Write the message: every field that differs, both values, the way out."""
        self.path = path
        self.differences = list(differences)
        self.way_out = way_out
        lines = [f"{path} was made from other inputs; these differ:"]
        for field, cached, wanted in self.differences[:_SHOWN_DIFFERENCES]:
            lines.append(f"  {field}: cache {_shown(cached)}, wanted {_shown(wanted)}")
        hidden = len(self.differences) - _SHOWN_DIFFERENCES
        if hidden > 0:
            lines.append(f"  … and {hidden} more")
        super().__init__("\n".join([*lines, way_out]))

    def __reduce__(self) -> tuple[type, tuple[Path | str, list[tuple[str, Any, Any]], str]]:
        """Travel between processes (the default would pass the message as the path)."""
        return type(self), (self.path, self.differences, self.way_out)


def canonical_json(value: object) -> bytes:
    """The one spelling of a value: sorted keys, no spaces, no NaN, UTF-8.

    Raises:
        CacheError: the value is not plain JSON.
    """
    try:
        # Twice, because keys that are numbers become strings and sort differently as such.
        plain = json.loads(json.dumps(value, allow_nan=False))
        text = json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return text.encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise CacheError(f"not plain JSON (no NaN, no objects, no cycles): {error}") from error


def fingerprint(identity: Mapping[str, Any]) -> str:
    """The sha256, in hex, of an identity's canonical JSON.

    Raises:
        CacheError: the identity is not plain JSON.
    """
    return hashlib.sha256(canonical_json(identity)).hexdigest()


def identity_differences(
    cache: Mapping[str, Any], wanted: Mapping[str, Any]
) -> list[tuple[str, Any, Any]]:
    """List what differs between two identities; empty exactly where the fingerprints agree.

    Returns:
        (dotted field, the cache's value, the wanted value) in the order of the fields' names;
        `ABSENT` stands for what one side does not have. Lists of one length are compared value by
        value, others as a whole.

    Raises:
        CacheError: an identity is not plain JSON.
    """
    plain = [json.loads(canonical_json(identity)) for identity in (cache, wanted)]
    return list(_differences((), *plain))


def check_identity(
    path: Path | str,
    cache: Mapping[str, Any],
    wanted: Mapping[str, Any],
    way_out: str = _EXTRACT_ANOTHER,
) -> None:
    """Refuse to go on with a cache that was made from other inputs.

    Raises:
        IdentityMismatch: naming `path` and each field that differs.
    """
    differences = identity_differences(cache, wanted)
    if differences:
        raise IdentityMismatch(path, differences, way_out)


def _differences(
    key: tuple[str, ...], cached: object, wanted: object
) -> Iterator[tuple[str, object, object]]:
    if isinstance(cached, dict) and isinstance(wanted, dict):
        for name in sorted(cached.keys() | wanted.keys()):
            values = (cached.get(name, ABSENT), wanted.get(name, ABSENT))
            yield from _differences((*key, name), *values)
    elif isinstance(cached, list) and isinstance(wanted, list) and len(cached) == len(wanted):
        for index, values in enumerate(zip(cached, wanted, strict=True)):
            yield from _differences((*key, str(index)), *values)
    # By spelling: 1, 1.0 and true are equal to Python but not to the fingerprint.
    elif ABSENT in (cached, wanted) or canonical_json(cached) != canonical_json(wanted):
        yield ".".join(key), cached, wanted


def _shown(value: object) -> str:
    if value is ABSENT:
        return repr(value)
    text = canonical_json(value).decode()
    if len(text) <= _SHOWN_CHARACTERS:
        return text
    count = f" ({len(value)} values)" if isinstance(value, (list, dict)) else ""
    return f"{text[:_SHOWN_CHARACTERS]}…{count}"
