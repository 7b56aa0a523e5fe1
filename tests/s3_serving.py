"""A server of the S3 protocol on this machine, whose answers can be made to fail."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import fsspec
import pytest
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

BUCKET = "team"

Start = Callable[..., Any]
App = Callable[[dict[str, Any], Start], Iterable[bytes]]


@dataclass
class Fault:
    """What is done to some requests.

    Attributes:
        kind: `status 503`, `drop`, `cut`, `slow`, `hang`, `wrong bytes` (of what is read),
            `wrong store` (of what is written), `missing`, `denied`.
        method: of the requests, as GET.
        contains: in their paths.
        times: how many of them; None is all.
    """

    kind: str
    method: str
    contains: str = ""
    times: int | None = None
    done: int = 0

    def hits(self, method: str, path: str) -> bool:
        """Whether a request is one of them."""
        left = self.times is None or self.done < self.times
        return left and method == self.method and self.contains in path


@dataclass
class Server:
    """The server, and what it was asked.

    Attributes:
        url: its address.
        faults: what is done to requests; tests put some in.
        requests: method and path of each.
    """

    url: str = ""
    faults: list[Fault] = field(default_factory=list)
    requests: list[tuple[str, str]] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def fault(self, method: str, path: str) -> Fault | None:
        """What is done to a request."""
        with self._lock:
            self.requests.append((method, path))
            for fault in self.faults:
                if fault.hits(method, path):
                    fault.done += 1
                    return fault
        return None


class _Quiet(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"

    def log(self, *_: object) -> None:
        """Say nothing."""


def _failing(app: App, server: Server) -> App:
    """The application, with what the server is told to do wrong."""

    def call(environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        fault = server.fault(environ["REQUEST_METHOD"], path)
        if fault is None:
            return app(environ, start)
        connection: socket.socket = environ["werkzeug.socket"]
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        match fault.kind.split():
            case ["status", code]:
                return _error(start, f"{code} Trouble", "InternalError")
            case ["denied"]:
                return _error(start, "403 Forbidden", "AccessDenied")
            case ["missing"]:
                return _error(start, "404 Not Found", "NoSuchKey")
            case ["drop"]:
                connection.shutdown(socket.SHUT_RDWR)
                return []
            case ["hang"]:
                time.sleep(3)
                connection.shutdown(socket.SHUT_RDWR)
                return []
            case ["slow"]:
                time.sleep(0.5)
            case ["wrong", "store"]:
                body = body.replace(body[-4:], b"oops") if body else body
                for name in list(environ):
                    if "CHECKSUM" in name or name == "HTTP_CONTENT_MD5":
                        del environ[name]
        environ["wsgi.input"] = _Body(body)
        content = b"".join(app(environ, start))
        if fault.kind == "cut":
            return _cut(content, connection)
        return [bytes([content[0] ^ 1, *content[1:]])] if fault.kind == "wrong bytes" else [content]

    return call


class _Body:
    """What was read of a request, to be read again."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def read(self, size: int = -1) -> bytes:
        """Read on."""
        size = len(self._content) if size < 0 else size
        found, self._content = self._content[:size], self._content[size:]
        return found


def _cut(content: bytes, connection: socket.socket) -> Iterator[bytes]:
    yield content[: len(content) // 2]
    connection.shutdown(socket.SHUT_RDWR)


def _error(start: Start, status: str, code: str) -> list[bytes]:
    content = f"<Error><Code>{code}</Code><Message>as told</Message></Error>".encode()
    start(status, [("Content-Type", "application/xml"), ("Content-Length", str(len(content)))])
    return [content]


@contextmanager
def serving() -> Iterator[Server]:
    """A server with an empty bucket."""
    told = Server()
    app = _failing(DomainDispatcherApplication(create_backend_app), told)
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=_Quiet)
    told.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield told
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(scope="session")
def s3_server() -> Iterator[Server]:
    """The server of this test process."""
    with serving() as server:
        yield server


@pytest.fixture
def s3(s3_server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """The server with an empty bucket, and this process told of it as users do."""
    for name, value in credentials(s3_server).items():
        monkeypatch.setenv(name, value)
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    files = fsspec.filesystem("s3")
    files.mkdir(BUCKET)
    s3_server.requests.clear()
    yield s3_server
    s3_server.faults.clear()
    files.rm(BUCKET, recursive=True)
    fsspec.get_filesystem_class("s3").clear_instance_cache()


def credentials(server: Server) -> dict[str, str]:
    """What a user's environment has."""
    return {
        "AWS_ENDPOINT_URL": server.url,
        "AWS_ACCESS_KEY_ID": "AKIAEXAMPLE",
        "AWS_SECRET_ACCESS_KEY": "a-secret-that-nobody-shall-see",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_MAX_ATTEMPTS": "1",
        "AWS_CONFIG_FILE": "/dev/null",
        "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
    }
