"""A hub on this machine: the few addresses that the doctor asks, with the answers that a test gives."""

from __future__ import annotations

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

SHA = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """repositories: "models/a/b" or "datasets/a/b" to {files: {name: bytes}, card, gated, access, status}."""

    def __init__(self):
        self.repositories: dict[str, dict] = {}
        self.asked: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                hub.answer(self)

            do_POST = do_HEAD = do_GET

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()

    def model(self, name: str, *files: str, **more):
        self.repositories[f"models/{name}"] = {"files": dict.fromkeys(files, b"x" * 1000), **more}

    def data(self, name: str, files: dict[str, bytes] | None = None, **more):
        self.repositories[f"datasets/{name}"] = {"files": files or {}, **more}

    def answer(self, request):
        length = int(request.headers.get("Content-Length") or 0)
        body = request.rfile.read(length)
        path = request.path.partition("?")[0]
        self.asked.append(path)
        if path == "/api/models":
            return send(request, 200, [])
        found = re.match(r"/(?:api/(models|datasets)|(datasets))/([^/]+/[^/]+)/(.*)", path)
        kind, name, rest = (found[1] or found[2], found[3], found[4]) if found else ("", "", "")
        repository = self.repositories.get(f"{kind}/{name}")
        if repository is None:
            return send(request, 401, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        if repository.get("status"):
            return send(request, repository["status"], {"error": "no"}, repository.get("headers", {}))
        files = repository["files"]
        if rest == "auth-check":
            refused = {"X-Error-Code": "GatedRepo"}
            return send(request, *((200, {}) if repository.get("access") else (403, {"error": "gated"}, refused)))
        if rest.startswith(("paths-info/", "tree/")):
            folder = unquote(rest).split("/", 2)[-1]
            wanted = json.loads(body)["paths"] if body else [p for p in files if p.rpartition("/")[0] == folder]
            entries = [{"type": "file", "path": p, "size": len(files[p]), "oid": SHA} for p in wanted if p in files]
            return send(request, 200, entries)
        if rest.startswith("resolve/"):
            data = files[rest.split("/", 2)[2]]
            span = re.match(r"bytes=(\d+)-(\d*)", request.headers.get("Range") or "")
            if span:
                data = data[int(span[1]) : int(span[2] or len(data)) + 1]
            return send(request, 206 if span else 200, data)
        info = {"id": name, "sha": SHA, "gated": repository.get("gated", False), "private": False, "tags": [], "downloads": 0}
        info |= {"likes": 0, "siblings": [{"rfilename": file, "size": len(data)} for file, data in files.items()]}
        return send(request, 200, {**info, "cardData": repository.get("card", {})})


def send(request, status: int, value, headers: dict[str, str] | None = None):
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    request.send_response(status)
    for key, text in (headers or {}).items():
        request.send_header(key, text)
    request.send_header("Content-Length", str(len(data)))
    request.end_headers()
    if request.command != "HEAD":
        request.wfile.write(data)
