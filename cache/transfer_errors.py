"""What it means where a store's client fails: one message with the thing and the way out."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

from cache.address import public_url, without_secrets
from cache.schema import CacheError

# By name: the clients that raise them need not be installed.
_NO_CREDENTIALS = ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound")
_NO_ADDRESS = ("ParamValidationError", "InvalidURL", "InvalidUrlClientError", "ValueError")
_NO_ANSWER = ("EndpointConnectionError", "ConnectTimeoutError", "ClientConnectorError", "gaierror")
_FULL = (errno.ENOSPC, errno.EDQUOT)
_NO_PLACE = (errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG)
_AGAIN = "run the same command again"


class TransferError(CacheError):
    """A file could not be brought to or from a URL; what has arrived is kept."""


def lacks_bucket(error: BaseException) -> bool:
    """Whether it is the whole bucket that is not there, not one file."""
    return any(
        isinstance(response := getattr(cause, "response", None), dict)
        and response.get("Error", {}).get("Code") == "NoSuchBucket"
        for cause in _causes(error)
    )


def is_final(error: Exception) -> bool:
    """Whether the same would come of trying again."""
    number = error.errno if isinstance(error, OSError) else None
    return (
        isinstance(error, (PermissionError, FileNotFoundError))
        or number in (*_FULL, *_NO_PLACE)
        or type(error).__name__ in (*_NO_CREDENTIALS, *_NO_ADDRESS)
    )


def failure(
    error: Exception, *, place: str, done: str, kept: bool, url: str, store: str
) -> TransferError:
    """The error that a user sees.

    Args:
        error: the client's.
        place: the file or folder, as it is called in messages.
        done: what could not be done with it, as "read".
        kept: whether it is one of many files, of which those that have arrived stay.
        url: the address with its secrets, which are taken out of what the client says.
        store: the protocol; empty of a folder of this machine.
    """
    name = type(error).__name__
    number = error.errno if isinstance(error, OSError) else None
    words = " ".join(str(error).split()) or name
    said = f"{words:.300}" if isinstance(error, OSError) else f"{name}: {words:.300}"
    again = f"What has arrived is kept: {_AGAIN}" if kept else _AGAIN.capitalize()
    refused = isinstance(error, PermissionError)
    told = f"{place} {'may not' if refused else 'could not'} be {done}: {said}"
    if lacks_bucket(error):
        way_out = "Check the name of the bucket, or have it made"
    elif refused and not store:
        way_out = "Ask who owns it"
    elif refused:
        way_out = f"{_where_credentials_are(store)}; ask who owns it"
    elif name in _NO_CREDENTIALS:
        way_out = _where_credentials_are(store)
    elif name in _NO_ADDRESS:
        way_out = f"Check the address{_endpoint(store)}"
    elif number in _FULL:
        way_out = f"{again} once there is room"
    elif isinstance(error, FileNotFoundError) or number in _NO_PLACE:
        way_out = "Check the address: nothing can be written there"
    elif any(type(cause).__name__ in _NO_ANSWER for cause in _causes(error)):
        way_out = f"Nobody answers there: check the network{_endpoint(store)}. {again}"
    else:
        way_out = again
    told = f"{told.rstrip('.')}. {way_out}"
    for address in (url, os.environ.get("AWS_ENDPOINT_URL", "")):
        told = without_secrets(told, address)
    return TransferError(told)


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


def _where_credentials_are(store: str) -> str:
    places = "environment, ~/.aws, instance roles; " if store.startswith("s3") else ""
    return f"Credentials come from where the {store} tools look for them ({places}docs/sharing.md)"


def _endpoint(store: str) -> str:
    if not store.startswith("s3"):
        return ""
    endpoint = public_url(os.environ.get("AWS_ENDPOINT_URL", ""))
    return f" and AWS_ENDPOINT_URL, which is {endpoint or 'not set'}"
