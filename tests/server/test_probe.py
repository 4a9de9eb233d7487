"""The image's health check, against servers that run."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import trustme

from tests.server.conftest import TinyBundle
from tests.server.process import ServerProcess, serving


def probe(url: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "LORAPLEX_PORT": url.rpartition(":")[2], **variables}
    command = [sys.executable, "-m", "loraplex.server.probe"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


def test_a_server_that_answers_is_healthy(tiny_server: ServerProcess) -> None:
    proxies = {"http_proxy": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9"}
    for host in ("", "0.0.0.0", "127.0.0.1"):
        assert probe(tiny_server.url, LORAPLEX_HOST=host, **proxies).returncode == 0


def test_a_port_without_a_server_is_not(tiny_server: ServerProcess) -> None:
    with socket.socket() as taken:  # so that nobody else listens there
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        found = probe(tiny_server.url, LORAPLEX_PORT=str(port))
    assert found.returncode == 1
    assert found.stderr.startswith(f"127.0.0.1:{port} does not answer: ")
    assert "Traceback" not in found.stderr


class PastMending(BaseHTTPRequestHandler):
    """What /health says once only a restart of the server helps."""

    def do_GET(self) -> None:
        self.send_response(503 if self.path == "/health" else 200)
        self.end_headers()
        self.wfile.write(b'{"status": "failed"}')


def test_a_server_past_mending_is_not() -> None:
    with HTTPServer(("127.0.0.1", 0), PastMending) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        found = probe(f"http://127.0.0.1:{server.server_port}")
    assert found.returncode == 1
    assert 'answers 503: {"status": "failed"}' in found.stderr


def test_over_https_with_the_certificate_of_another_name(tiny: TinyBundle, tmp_path: Path) -> None:
    certificate = trustme.CA().issue_cert("models.example.com")
    file = tmp_path / "certificate.pem"
    certificate.private_key_and_cert_chain_pem.write_to_path(file)
    with serving(tiny.folder, tmp_path / "log", "--ssl-certfile", str(file)) as server:
        assert probe(server.url, LORAPLEX_SSL_CERTFILE=str(file)).returncode == 0
        assert probe(server.url).returncode == 1
