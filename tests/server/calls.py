"""What tests ask of a server: completions, and the endpoints that the official client has no words for."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import httpx
import openai

from tests.server.process import PATIENCE, ServerProcess

PROMPTS = [[seed, seed + 40, 7] for seed in range(10, 34)]
LONG = 200
"""Tokens of an answer; 128 of them are seconds of work, which still runs when something happens to it."""


def ask(server: ServerProcess, model: str, prompt: list[int], count: int = 24) -> str:
    answer = server.client.completions.create(model=model, prompt=prompt, temperature=0, max_tokens=count)
    return answer.choices[0].text


def stream(server: ServerProcess, *, n: int = 1, ignore_eos: bool = False) -> openai.Stream[openai.types.Completion]:
    return server.client.completions.create(
        model="large",
        prompt=[10, 20],
        temperature=1,
        seed=1,
        max_tokens=LONG,
        stream=True,
        n=n,
        extra_body={"ignore_eos": ignore_eos},
    )


def call(server: ServerProcess, method: str, path: str, body: object = None, key: str | None = None) -> tuple[int, Any]:
    """Status and body, decoded where it is JSON."""
    headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {key}"} if key else {})
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(server.url + path, data, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as response:
            status, content = response.status, response.read()
    except urllib.error.HTTPError as error:
        with error:
            status, content = error.code, error.read()
    try:
        return status, json.loads(content)
    except ValueError:
        return status, content.decode()


def upload(server: ServerProcess, name: str, *files: Path | tuple[str, bytes]) -> tuple[int, Any]:
    parts = [(each[0], each[1]) if isinstance(each, tuple) else (each.name, each.read_bytes()) for each in files]
    response = httpx.put(
        f"{server.url}/v1/adapters/{name}", files=[("file", part) for part in parts], timeout=120, trust_env=False
    )
    return response.status_code, response.json()
