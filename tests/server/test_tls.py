"""HTTPS by a certificate of the operator's."""

from __future__ import annotations

import ssl
import subprocess
import urllib.request
from pathlib import Path

import httpx2
import openai
import pytest
import trustme

from tests.server.conftest import TinyBundle
from tests.server.process import command, serving


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def files(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Certificate and key for 127.0.0.1."""
    folder = tmp_path_factory.mktemp("tls")
    certificate = authority.issue_cert("127.0.0.1")
    for blob in certificate.cert_chain_pems:
        blob.write_to_path(folder / "certificate.pem", append=True)
    certificate.private_key_pem.write_to_path(folder / "key.pem")
    return str(folder / "certificate.pem"), str(folder / "key.pem")


def test_the_official_client_over_https(
    tiny: TinyBundle, tmp_path: Path, authority: trustme.CA, files: tuple[str, str]
) -> None:
    certificate, key = files
    with serving(tiny.folder, tmp_path / "log", "--ssl-certfile", certificate, "--ssl-keyfile", key) as server:
        assert server.url.startswith("https://")
        context = ssl.create_default_context()
        with pytest.raises(urllib.error.URLError, match="CERTIFICATE_VERIFY_FAILED"):
            urllib.request.urlopen(server.url + "/health", timeout=60)
        authority.configure_trust(context)
        with (
            httpx2.Client(verify=context) as http,
            openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", http_client=http, max_retries=0) as client,
        ):
            pieces = list(client.completions.create(model="small", prompt=[10], max_tokens=5, stream=True))
        assert pieces[-1].choices[0].finish_reason in ("length", "stop")
        assert server.stop() == 0
    assert "Traceback" not in (tmp_path / "log").read_text()


@pytest.mark.parametrize("wrong", ["no such file", "no key", "another's key"])
def test_files_that_do_not_fit_are_one_line(
    tiny: TinyBundle, tmp_path: Path, files: tuple[str, str], wrong: str
) -> None:
    certificate, key = files
    other = tmp_path / "other.pem"
    trustme.CA().issue_cert("127.0.0.1").private_key_pem.write_to_path(other)
    flags = {
        "no such file": ("--ssl-certfile", str(tmp_path / "missing.pem"), "--ssl-keyfile", key),
        "no key": ("--ssl-certfile", certificate),
        "another's key": ("--ssl-certfile", certificate, "--ssl-keyfile", str(other)),
    }[wrong]
    result = subprocess.run(command(tiny.folder, *flags), capture_output=True, text=True, timeout=60)
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1, result.stderr
    assert "cannot be used" in result.stderr
