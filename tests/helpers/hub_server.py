"""A small Hugging Face hub on loopback, with the parts of its HTTP interface that models need."""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

TOKEN = "hf_of_this_hub"


class HubServer(ThreadingHTTPServer):
    """HTTP server that offers folders as models by their ids; its fields may be changed at any time."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.store = f"http://localhost:{self.server_port}/store"  # another host, like the real hub's
        self.models: dict[str, Path] = {}
        """Folders by model id, and those of other revisions by `id@revision`."""
        self.gated: set[str] = set()
        """Models that need access rights, which nobody has."""
        self.status = 200
        """HTTP status; any other than 200 is the answer to every request."""
        self.hangs = False
        self.no_hub = False
        """Whether the answer to everything is a web page, like that of a network's login."""
        self.asked: list[str] = []
        """Methods and paths of the requests so far."""

    def at(self, model: str, revision: str | None) -> str | None:
        """Return the key in `models` of a model's revision, or None.

        Any commit hash that no revision has counts as a former newest one.
        """
        keys = [key for key in self.models if key.partition("@")[0] == model]
        named = [key for key in keys if key == f"{model}@{revision}" or self.commit(key) == revision]
        is_newest = revision in (None, "main") or re.fullmatch("[0-9a-f]{40}", revision or "")
        return named[0] if named else model if is_newest else None

    def commit(self, model: str) -> str:
        """Return a hash of all files that a model has now, in place of a git commit."""
        digest = hashlib.sha1(usedforsecurity=False)
        for name, path in self.files(model).items():
            digest.update(name.encode() + path.read_bytes())
        return digest.hexdigest()

    def files(self, model: str) -> dict[str, Path]:
        """Return a model's files by their names on the hub."""
        folder = self.models[model]
        found = sorted(path for path in folder.rglob("*") if path.is_file())
        return {path.relative_to(folder).as_posix(): path for path in found}


@contextmanager
def serving(**models: Path) -> Iterator[HubServer]:
    """Yield a hub that answers during the context; `models` are named `org/KEYWORD`."""
    with HubServer() as hub:
        hub.models.update({f"org/{name}": folder for name, folder in models.items()})
        thread = threading.Thread(target=hub.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: HubServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        hub, path = self.server, urlsplit(self.path).path
        hub.asked.append(f"{self.command} {unquote(path)}")
        if hub.hangs:
            time.sleep(60)
        if hub.no_hub:
            self._send(b"<html>Please log in to this network</html>")
        elif hub.status != 200:
            self._send(b"", hub.status)
        elif self.headers.get("Authorization", f"Bearer {TOKEN}") != f"Bearer {TOKEN}":
            self._refuse(401, message="Invalid credentials in Authorization header")
        elif found := _parts(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?", path):
            self._about(found[0], found[2] or None, tree=found[1] == "tree")
        elif found := _parts(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._file(*found)
        elif found := _parts(r"/store/([^/]+)/(.+)", path):
            self._content(hub.files(found[0])[found[1]].read_bytes())
        else:
            self._refuse(404)

    do_HEAD = do_GET

    def do_CONNECT(self) -> None:
        """Refuse to be a proxy: answer a request for a tunnel with 407."""
        self._send(b"", 407)

    def log_message(self, *_: object) -> None:
        """Discard the log."""

    def _about(self, model: str, revision: str | None, *, tree: bool) -> None:
        hub = self.server
        if model not in hub.models:
            self._refuse(404, "RepoNotFound", "Repository not found")
            return
        key = hub.at(model, revision)
        if key is None:
            self._refuse(404, "RevisionNotFound", "Invalid rev id")
            return
        if tree:
            told: Any = [
                {"type": "file", "path": name, "size": path.stat().st_size, "oid": _hash(path)}
                for name, path in hub.files(key).items()
            ]
        else:
            names = [{"rfilename": name} for name in hub.files(key)]
            told = {"id": model, "sha": hub.commit(key), "siblings": names}
        self._send(json.dumps(told).encode(), type_="application/json")

    def _file(self, repo: str, revision: str, name: str) -> None:
        """Send a file, or a redirect for weights, which are stored elsewhere, as on the real hub."""
        hub = self.server
        model = hub.at(repo, revision) or ""
        if repo not in hub.models:
            self._refuse(404, "RepoNotFound", "Repository not found")
        elif not model:
            self._refuse(404, "RevisionNotFound", "Invalid rev id")
        elif model in hub.gated:
            self._refuse(403, "GatedRepo", "Access to model is restricted")
        elif name not in hub.files(model):
            self._refuse(404, "EntryNotFound", "Entry not found", commit=hub.commit(model))
        else:
            path, commit = hub.files(model)[name], {"X-Repo-Commit": hub.commit(model)}
            if name.endswith(".safetensors"):
                linked = {"X-Linked-Etag": f'"{_hash(path)}"', "X-Linked-Size": str(path.stat().st_size)}
                self._send(
                    b"",
                    302,
                    Location=f"{hub.store}/{quote(model, safe='')}/{quote(name)}",
                    **commit,
                    **linked,
                )
            else:
                self._content(path.read_bytes(), ETag=f'"{_hash(path)}"', **commit)

    def _content(self, content: bytes, **headers: Any) -> None:
        """Send the content, or the part of it that the request's Range names."""
        if found := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            start, size = int(found[1]), len(content)
            part = content[start : int(found[2] or size) + 1]
            headers["Content-Range"] = f"bytes {start}-{start + len(part) - 1}/{size}"
            self._send(part, 206, **headers)
        else:
            self._send(content, **headers)

    def _refuse(self, status: int, code: str = "", message: str = "", commit: str = "") -> None:
        headers = {"X-Error-Code": code, "X-Error-Message": message, "X-Repo-Commit": commit}
        self._send(b"", status, **{name: value for name, value in headers.items() if value})

    def _send(self, body: bytes, status: int = 200, type_: str = "text/html", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": type_, "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _parts(pattern: str, path: str) -> list[str] | None:
    """Return the parts of a path, decoded, that match a pattern's groups; None if the path does not match."""
    found = re.fullmatch(pattern, path)
    return found and [unquote(part or "") for part in found.groups()]


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
