"""A Hugging Face Hub of a few files in this process: what the real client needs of its API to list and to download.

Large files are where the Hub has them: behind a redirect to another host, with their SHA-256 in the listing. Source:
huggingface_hub's client, and https://huggingface.co/docs/hub/api.
"""

from __future__ import annotations

import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
PAGE = 2  # entries of a listing's page; the Hub has a thousand


class HubServer(ThreadingHTTPServer):
    """repos: {"owner/name": {path: bytes}}, of data sets and models alike. requests: (method, path, headers).

    gated: names of repositories that answer 403. Of the contents of large files: cut: {path: how many bytes of the next
    answers to send}. damaged: {path: how many answers are still wrong in a byte}. refuse: {path: from which request
    on, counted from 0, the answer is 503}.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos: dict[str, dict[str, bytes]] = {}
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.gated: set[str] = set()
        self.cut: dict[str, list[int]] = {}
        self.damaged: dict[str, int] = {}
        self.refuse: dict[str, int] = {}

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that leaves is no error."""

    def ranges(self, path: str) -> list[str | None]:
        """The Range of every GET of a large file's content so far."""
        return [h.get("range") for method, p, h in self.requests if method == "GET" and p == f"/content/{path}"]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer  # pyright: ignore[reportIncompatibleVariableOverride]

    def log_message(self, format: str, *args: object) -> None:
        """Nothing on stderr."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        url = urlsplit(self.path)
        path = unquote(url.path)
        self.server.requests.append((self.command, path, {k.lower(): v for k, v in self.headers.items()}))
        parts = path.strip("/").split("/")
        if parts[0] == "content":
            return self._content("/".join(parts[1:]))
        if parts[:2] == ["api", "datasets"]:
            repo, verb, revision, rest = "/".join(parts[2:4]), parts[4], parts[5], "/".join(parts[6:])
        else:
            parts = parts[1:] if parts[0] == "datasets" else parts
            repo, verb, revision, rest = "/".join(parts[:2]), parts[2], parts[3], "/".join(parts[4:])
        if repo not in self.server.repos:
            return self._send(401, b"", {"X-Error-Code": "RepoNotFound"})
        if revision not in ("main", COMMIT):
            return self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
        if verb == "revision":
            return self._json({"id": repo, "sha": COMMIT})
        return self._tree(repo, rest, url.query) if verb == "tree" else self._resolve(repo, rest)

    def _tree(self, repo: str, folder: str, query: str) -> None:
        files = {path: data for path, data in self.server.repos[repo].items() if path.startswith(f"{folder}/")}
        if not files and folder != "other":
            return self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
        entries = [{"type": "directory", "oid": "0" * 40, "size": 0, "path": f"{folder}/sub"}]
        for path, data in files.items():
            blob = hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()
            lfs = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
            entry = {"type": "file", "oid": blob, "size": len(data), "path": path}
            entries.append(entry if path.endswith(".json") else entry | {"lfs": lfs})
        start = int(parse_qs(query).get("cursor", ["0"])[0])
        address = f"{self.server.address}{urlsplit(self.path).path}?recursive=true&cursor={start + PAGE}"
        more = {"Link": f'<{address}>; rel="next"'} if start + PAGE < len(entries) else {}
        self._json(entries[start : start + PAGE], more)

    def _resolve(self, repo: str, path: str) -> None:
        if repo in self.server.gated:
            return self._send(403, b"", {"X-Error-Code": "GatedRepo"})
        if path not in self.server.repos[repo]:
            return self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
        data = self.server.repos[repo][path]
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha1(data).hexdigest()}"'}
        if path.endswith(".json"):
            return self._send(200, data, headers)
        headers |= {"X-Linked-Size": str(len(data)), "X-Linked-Etag": f'"{hashlib.sha256(data).hexdigest()}"'}
        headers |= {"Location": f"http://localhost:{self.server.server_port}/content/{path}"}
        self._send(302, b"", headers)

    def _content(self, path: str) -> None:
        if len(self.server.ranges(path)) > self.server.refuse.get(path, 1 << 30):
            return self._send(503, b"", {})
        data = next(files[path] for files in self.server.repos.values() if path in files)
        if self.server.damaged.get(path, 0):
            self.server.damaged[path] -= 1
            data = bytes([data[0] ^ 1]) + data[1:]
        start, total = int((self.headers.get("Range") or "bytes=0-")[6:].rstrip("-")), len(data)
        headers = {"Content-Range": f"bytes {start}-{total - 1}/{total}"} if start else {}
        cuts = self.server.cut.get(path)
        self._send(206 if start else 200, data[start:], headers, cuts.pop(0) if cuts else None)

    def _json(self, value: object, headers: dict[str, str] | None = None) -> None:
        self._send(200, json.dumps(value).encode(), headers or {})

    def _send(self, status: int, body: bytes, headers: dict[str, str], only: int | None = None) -> None:
        """Answer; with `only`, promise everything, send so many bytes and hang up."""
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[:only])
        self.close_connection = self.close_connection or only is not None


@contextmanager
def hub_server():
    """A HubServer that runs while the block does."""
    with HubServer() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
