"""A registry of container images that holds one, and can break off in the middle of it."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
LAYER_BYTES = 300_000


def digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def layer() -> tuple[bytes, bytes]:
    """(tar, gzipped tar) with one file that does not compress."""
    buffer = io.BytesIO()
    content = os.urandom(LAYER_BYTES)
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        info = tarfile.TarInfo("data")
        info.size = len(content)
        tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue(), gzip.compress(buffer.getvalue())


class Registry:
    """Blobs and one manifest, at ``127.0.0.1:PORT/loadproof/x:1``."""

    def __init__(self) -> None:
        plain, packed = layer()
        config = json.dumps(
            {
                "architecture": "amd64",
                "os": "linux",
                "config": {"Cmd": ["/none"]},
                "rootfs": {"type": "layers", "diff_ids": [digest(plain)]},
                "history": [{"created_by": "test"}],
            }
        ).encode()
        self.blobs = {digest(config): config, digest(packed): packed}
        self.manifest = json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": MANIFEST,
                "config": {
                    "mediaType": "application/vnd.docker.container.image.v1+json",
                    "size": len(config),
                    "digest": digest(config),
                },
                "layers": [
                    {
                        "mediaType": "application/vnd.docker.image.rootfs.diff.tar.gzip",
                        "size": len(packed),
                        "digest": digest(packed),
                    }
                ],
            }
        ).encode()
        self.locked = False
        self.wrong_layer = False
        self.breaks_off = False
        self.broken_off = 0
        """Times that it did."""
        self.address = ""

    def answer(self, path: str) -> tuple[int, str, bytes]:
        """(status, content type, body) of a GET."""
        if self.locked:
            return (
                401,
                "application/json",
                b'{"errors": [{"code": "UNAUTHORIZED", "message": "authentication required"}]}',
            )
        if path == "/v2/":
            return 200, "application/json", b"{}"
        if path in ("/v2/loadproof/x/manifests/1", f"/v2/loadproof/x/manifests/{digest(self.manifest)}"):
            return 200, MANIFEST, self.manifest
        blob = self.blobs.get(path.rpartition("/")[2])
        if path.startswith("/v2/loadproof/x/blobs/") and blob is not None:
            broken = self.wrong_layer and len(blob) > LAYER_BYTES
            return 200, "application/octet-stream", b"x" * len(blob) if broken else blob
        return 404, "application/json", _error("MANIFEST_UNKNOWN", "manifest unknown")


def _error(code: str, message: str) -> bytes:
    return json.dumps({"errors": [{"code": code, "message": message}]}).encode()


@contextmanager
def registry() -> Iterator[Registry]:
    served = Registry()

    class Answers(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None: ...

        def do_GET(self) -> None:
            status, kind, whole = served.answer(self.path)
            # An engine asks for the rest of a layer that broke off.
            first = int(self.headers.get("Range", "bytes=0-")[6:].partition("-")[0]) if status == 200 else 0
            body = whole[first:]
            self.send_response(206 if first else status)
            if first:
                self.send_header("Content-Range", f"bytes {first}-{len(whole) - 1}/{len(whole)}")
            self.send_header("Docker-Distribution-Api-Version", "registry/2.0")
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Docker-Content-Digest", digest(whole))
            if status == 401:
                self.send_header("Www-Authenticate", 'Basic realm="test"')
            self.end_headers()
            if self.command != "GET":
                return
            if served.breaks_off and len(whole) > LAYER_BYTES:
                served.broken_off += 1
                self.wfile.write(body[: len(body) // 2])
                self.close_connection = True
            else:
                self.wfile.write(body)

        def do_HEAD(self) -> None:
            self.do_GET()

    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        served.address = f"127.0.0.1:{server.server_address[1]}"
        try:
            yield served
        finally:
            server.shutdown()
            thread.join()
