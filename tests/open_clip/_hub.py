"""A small hub of models on this machine: the endpoints that huggingface-hub's own client calls to create and fill a repository.

Files arrive as they do at the real one: small ones inside of the commit, weights by Git LFS's basic transfer. No reading back.
"""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

LARGE = (".safetensors", ".bin")


class Hub:
    """``address``; ``files`` by path as they were committed; ``requests`` lists method and path."""

    def __init__(self) -> None:
        self.address = ""
        self.files: dict[str, bytes] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.created: dict[str, Any] = {}
        self.message = ""
        self.tokens: set[str] = set()
        self.refused = False


def _answer(hub: Hub, method: str, path: str, body: bytes) -> tuple[int, Any]:
    """The status and the JSON of one request."""
    if hub.refused:
        return 403, {"error": "no write access"}
    if path == "/api/repos/create":
        hub.created = json.loads(body)
        name = "/".join(filter(None, (hub.created.get("organization", "someone"), hub.created["name"])))
        return 200, {"url": f"{hub.address}/{name}", "id": name, "name": name}
    if "/resolve/" in path:
        return (200 if path.rsplit("/", 1)[-1] in hub.files else 404), {}
    if "/preupload/" in path:
        files = json.loads(body)["files"]
        modes = [
            {"path": file["path"], "uploadMode": "lfs" if file["path"].endswith(LARGE) else "regular"} for file in files
        ]
        return 200, {"files": [{**mode, "shouldIgnore": False} for mode in modes]}
    if path.endswith("/info/lfs/objects/batch"):
        objects = json.loads(body)["objects"]
        actions = [{"upload": {"href": f"{hub.address}/objects/{item['oid']}"}} for item in objects]
        pairs = zip(objects, actions, strict=True)
        return 200, {"transfer": "basic", "objects": [{**item, "actions": action} for item, action in pairs]}
    if method == "PUT" and path.startswith("/objects/"):
        hub.objects[path.removeprefix("/objects/")] = body
        return 200, {}
    if "/commit/" in path:
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                hub.message = value["summary"]
            elif line["key"] == "file":
                hub.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                hub.files[value["path"]] = hub.objects[value["oid"]]
        return 200, {"commitUrl": f"{hub.address}/someone/x/commit/1", "commitOid": "1" * 40, "success": True}
    if path == "/api/validate-yaml":
        return 200, {"errors": [], "warnings": []}
    return 404, {"error": f"{method} {path} is not played"}


@contextmanager
def running_hub() -> Iterator[Hub]:
    """A hub that listens on a free port of this machine."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def _reply(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            path = self.path.split("?")[0]
            hub.requests.append(f"{self.command} {path}")
            hub.tokens.add(self.headers.get("Authorization", ""))
            status, value = _answer(hub, self.command, path, body)
            content = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            if status == 404:
                self.send_header("X-Error-Code", "EntryNotFound")
            if "/resolve/" in path:
                self.send_header("X-Repo-Commit", "1" * 40)
                self.send_header("ETag", '"1"')
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        do_GET = do_POST = do_PUT = do_HEAD = _reply

        def log_message(self, *args: Any) -> None:
            """Silent."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
