"""The image's health check: `python -m loraplex.server.probe` ends with 0 while the server's /health says 200.

It asks the server that the LORAPLEX_* variables of its own environment set up; flags of another process it cannot see.
"""

from __future__ import annotations

import os
import ssl
import sys
from collections.abc import Mapping
from http.client import HTTPConnection, HTTPException, HTTPSConnection

TIMEOUT = 5.0
"""Seconds."""


def failure(environment: Mapping[str, str]) -> str:
    """What is wrong, in a few words; empty where /health is answered 200.

    Without urllib, which would ask for this machine by way of a proxy that the environment names, and whatever the
    certificate says: its name is that by which clients call the server.
    """
    host = environment.get("LORAPLEX_HOST") or "127.0.0.1"
    port = int(environment.get("LORAPLEX_PORT") or 8000)
    connection = HTTPConnection(host, port, timeout=TIMEOUT)
    if environment.get("LORAPLEX_SSL_CERTFILE"):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        connection = HTTPSConnection(host, port, timeout=TIMEOUT, context=context)
    try:
        connection.request("GET", "/health")
        answer = connection.getresponse()
        body = answer.read().decode(errors="replace")
    except (OSError, HTTPException) as error:
        return f"{host}:{port} does not answer: {error}"
    finally:
        connection.close()
    return "" if answer.status == 200 else f"{host}:{port} answers {answer.status}: {body}"


if __name__ == "__main__":
    sys.exit(failure(os.environ) or 0)
