"""The OpenAPI document says what the server does: every route, every status, every body.

    python -m tests.server.test_openapi 10000

sends so many generated requests to a server of its own, instead of the few of a test run.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest
from jsonschema_rs import Draft202012Validator
from starlette.routing import Route

from loraplex.server.api.contract import OPERATIONS
from loraplex.server.app import ROUTES
from tests.server.conftest import DEMO
from tests.server.process import ServerProcess, serving

NAMES = {
    "model": ["plex", "tone", "json", "travel"],
    # One of them is loaded and unloaded all the time, the others stay.
    "lora_name": ["travel", "nobody"],
    "lora_path": ["travel", "tone"],
    "path": ["travel", "tone"],
}
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
)
SUMMARY = re.compile(r"(\d+) generated, (\d+) passed")


def known_names(document: dict[str, Any]) -> dict[str, Any]:
    """The document with the names of models that exist, without which most requests would end as 404, and with limits
    that keep answers short."""
    for body in {operation.body.__name__ for operation in OPERATIONS if operation.body}:
        schema = document["components"]["schemas"][body]
        schema.get("properties", {}).pop("hub", None)  # there is none here
        for name, field in schema.get("properties", {}).items():
            kinds = {each.get("type") for each in field.get("anyOf", [field])}
            if "string" in kinds and (names := NAMES.get(name)):
                schema["properties"][name] = {"enum": names}
                # Without one of its own, a request is refused by a server that has no default.
                schema["required"] = sorted({*schema.get("required", []), name})
            limits = {"n": ("maximum", 2), "timeout": ("minimum", 60)}
            limits |= dict.fromkeys(("max_tokens", "max_completion_tokens", "max_output_tokens"), ("maximum", 16))
            if name in limits:
                for each in field.get("anyOf", [field]):
                    if each.get("type") in ("integer", "number"):
                        each[limits[name][0]] = limits[name][1]
    for operations in document["paths"].values():
        for operation in operations.values():
            for parameter in operation.get("parameters", []):
                parameter["schema"] = {"enum": NAMES["model" if parameter["name"] == "id" else "lora_name"]}
    return document


def send_generated_requests(folder: Path, cases: int) -> tuple[int, Counter[str], str]:
    """How many requests passed, the statuses of those to generate with, and schemathesis' report.

    Schemathesis takes the number of cases an operation, of its fuzzing phase; its coverage phase adds thousands.
    """
    adapters = shutil.copytree(DEMO / "adapters", folder / "adapters")
    log = folder / "log"
    flags = ("--dev", "--adapter-dir", str(adapters), "--default-max-tokens", "16")
    each = max(1, cases // 10)  # of the others there is not more than one
    with serving(DEMO, log, *flags) as server:
        document = folder / "openapi.json"
        document.write_text(json.dumps(known_names(server.get("/openapi.json")[1])))
        phases = "fuzzing" if cases < 1000 else "coverage,fuzzing"
        run = subprocess.run(
            [
                str(Path(sysconfig.get_path("scripts")) / "schemathesis"),
                *("run", str(document), "--url", server.url, "--checks", ",".join(CHECKS), "--phases", phases),
                *("--max-examples", str(each), "--generation-database", "none", "--continue-on-failure"),
                *("--request-timeout", "60", "--no-color"),
            ],
            cwd=folder,
            env=os.environ | {"SCHEMATHESIS_HOOKS": ""},
            capture_output=True,
            text=True,
        )
        assert server.get("/health")[0] == 200
    assert "Traceback" not in log.read_text()
    statuses = Counter(re.findall(r"access: POST /v1/(?:chat/)?completions (\d+)", log.read_text()))
    summary = SUMMARY.search(run.stdout)
    assert run.returncode == 0, run.stdout + run.stderr
    assert summary, run.stdout + run.stderr
    assert summary[1] == summary[2], run.stdout
    return int(summary[2]), statuses, run.stdout


def test_the_document_has_every_route_and_no_others() -> None:
    routes = {
        (method, route.path)
        for route in ROUTES
        if isinstance(route, Route)
        for method in (route.methods or set()) - {"HEAD"}
    }
    assert {(operation.method, operation.path) for operation in OPERATIONS} == routes


def test_the_document_is_an_openapi_document(tiny_server: ServerProcess) -> None:
    status, document = tiny_server.get("/openapi.json")
    assert status == 200
    assert document["openapi"] == "3.1.0"
    names = document["components"]["schemas"].keys()
    references = set(re.findall(r'"\$ref": ?"#/components/schemas/([^"]*)"', json.dumps(document)))
    assert references <= names
    request = {**document["components"]["schemas"]["ChatRequest"], "components": document["components"]}
    validator = Draft202012Validator(request)
    good = {"model": "small", "messages": [{"role": "user", "content": "w10"}], "stop": ["a"], "logit_bias": {"5": 1}}
    assert validator.is_valid(good)
    for bad in ({"stop": ["a", "b", "c", "d", "e"]}, {"temperature": 3}, {"tempature": 1}, {"logit_bias": {"5x": 1}}):
        assert not validator.is_valid(good | bad), bad


def test_a_path_that_has_not_the_method_names_all_it_has(tiny_server: ServerProcess) -> None:
    _, document = tiny_server.get("/openapi.json")
    for path, operations in document["paths"].items():
        answer = httpx.request("TRACE", tiny_server.url + re.sub(r"\{\w+\}", "small", path), trust_env=False)
        named = set(answer.headers["allow"].split(", "))
        assert (answer.status_code, named - {"HEAD"}) == (405, {method.upper() for method in operations})


def test_docs_show_every_operation_and_load_nothing(tiny_server: ServerProcess) -> None:
    status, page = tiny_server.get("/docs")
    assert status == 200
    for operation in OPERATIONS:
        assert operation.path in page
    assert not re.search(r"<(script|link|img|iframe)|https?://", page)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_generated_requests_get_what_the_document_says(tmp_path: Path) -> None:
    passed, statuses, report = send_generated_requests(tmp_path, 300)
    assert passed >= 100, report
    assert statuses["200"] >= 10, statuses
    assert statuses["400"] >= 10, statuses


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        found, answered, output = send_generated_requests(Path(scratch), int(sys.argv[1]))
    print(output, f"{found} cases; generating answered {dict(answered)}", sep="\n")
