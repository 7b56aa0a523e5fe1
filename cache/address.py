"""Addresses as users give them: which are refused, and what of one may be told."""

from __future__ import annotations

import os
import re
import urllib.parse
from pathlib import Path

from cache.schema import CacheError

_ONE_SLASH = re.compile(r"(\w[\w+.-]+):/(?!/)(.*)", re.DOTALL)  # of Windows, `C:/` is a drive
_ARN = "arn:"  # s3://arn:aws:s3:…:accesspoint/… has colons and no password
# What stands before their first slash is a name: there is no place for a user or a password.
_OF_NAMES = ("s3", "s3a", "gs", "gcs", "hf")
_FEWEST_CHARACTERS = 3  # of a secret; anything shorter would be found in every word


def is_url(place: str | os.PathLike[str]) -> bool:
    """Whether a place is no local folder, as `s3://bucket/cache`."""
    return "://" in os.fspath(place)


def checked_address(place: str) -> str:
    """An address as it is used: a URL with its protocol in lower case, or a folder's full path.

    Raises:
        CacheError: it is empty, or a URL with a mistake or with a secret that no tool would use.
    """
    if not place.strip():
        raise CacheError("the address is empty: give a folder, or a URL as s3://bucket/caches")
    if not is_url(place):
        match = _ONE_SLASH.fullmatch(place)
        if match:
            raise CacheError(
                f"{place} is neither a URL, which has two slashes as {match[1]}://{match[2]}, nor "
                f"likely a folder: of a folder of this name write ./{place}"
            )
        return str(Path(place).absolute())
    protocol, _, rest = place.partition("://")
    url = f"{protocol.lower()}://{rest}"
    _refuse_secrets(protocol.lower(), url)
    return url


def _refuse_secrets(protocol: str, url: str) -> None:
    parts = urllib.parse.urlsplit(url)
    colon = ":" in parts.netloc and not parts.netloc.startswith(_ARN)
    if protocol in _OF_NAMES and ("@" in parts.netloc or colon):
        raise CacheError(
            f"there is no place for a user or a password in {protocol}://NAME/FOLDER, and this "
            "address holds one (it is not shown here). Credentials come from where the tools of "
            "the store look for them: environment, ~/.aws, … (docs/sharing.md)"
        )
    if protocol in ("http", "https") and parts.query:
        raise CacheError(
            f"{public_url(url)} was given with a query (?…, not shown here), which is for one "
            "file, and a cache is a folder of many: give a URL of the folder without it"
        )


def public_url(url: str) -> str:
    """A URL without the secrets that some hold: user, password, query."""
    if not is_url(url):
        return url
    parts = urllib.parse.urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    if re.fullmatch(r".*:\D.*", host) and "@" in url and not host.startswith(_ARN):
        return f"{parts.scheme}://…"  # a password that holds a slash
    return f"{parts.scheme}://{host}{parts.path}"


def without_secrets(text: str, url: str) -> str:
    """What others say of a URL, without the user, password and query that stand in it."""
    parts = urllib.parse.urlsplit(url)
    user = parts.netloc.rpartition("@")[0]
    secrets = [user, user.partition(":")[2], parts.query, parts.fragment]
    secrets += [value for _, value in urllib.parse.parse_qsl(parts.query)]
    spelt = {form(secret) for secret in secrets for form in (str, urllib.parse.unquote)}
    for secret in sorted(spelt, key=len, reverse=True):
        if len(secret) >= _FEWEST_CHARACTERS:
            text = text.replace(secret, "…")
    return text
