"""curl through handfast to a plain HTTP server."""

from __future__ import annotations

import subprocess
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import pytest

from harness.streams import random_bytes, sha256

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from conftest import Certificates, Serve

PAGE = random_bytes(3_000_001)


class Handler(BaseHTTPRequestHandler):
    """GET gives a page; POST gives back what it got."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(PAGE)

    def do_POST(self) -> None:
        self._answer(self.rfile.read(int(self.headers["Content-Length"])))

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
        """Stay quiet."""


@contextmanager
def http_server() -> Iterator[str]:
    """Run the server; gives it as a target."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield f"tcp://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_curl_gets_and_posts_megabytes(
    serve: Serve, certificates: Certificates, tmp_path: Path, version: str
) -> None:
    got, posted, sent = tmp_path / "got", tmp_path / "posted", tmp_path / "sent"
    sent.write_bytes(random_bytes(2_000_003))
    with http_server() as target:
        handfast = serve(target)
        url = f"https://localhost:{handfast.port()}/"
        done = subprocess.run(
            [
                "curl", "--silent", "--show-error", "--fail", "--ipv4",
                "--cacert", str(certificates.ca), f"--tlsv{version}", "--tls-max", version,
                "--output", str(got), url,
                "--next", "--silent", "--show-error", "--fail", "--ipv4",
                "--cacert", str(certificates.ca), f"--tlsv{version}", "--tls-max", version,
                "--data-binary", f"@{sent}", "--output", str(posted), url,
            ],
            capture_output=True, text=True, timeout=30, check=False,
        )  # fmt: skip

        assert done.returncode == 0, done.stderr
        assert sha256(got.read_bytes()) == sha256(PAGE)
        assert sha256(posted.read_bytes()) == sha256(sent.read_bytes())
        granted = handfast.wait("auth", outcome="granted")
        assert (granted["tls_version"], granted["sni"]) == (f"TLSv{version}", "localhost")
        end = handfast.wait("proxy", subevent="client_disconnect")
        assert "error_msg" not in end
