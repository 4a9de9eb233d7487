"""The requests of vLLM's page on LoRA adapters (https://docs.vllm.ai/en/latest/features/lora/), with names and prompts
of the demo; run by `python -m tests.clients`.

python vllm_client.py URL_OF_THE_DEMO URL_OF_A_MODEL_WITH_TOOLS URL_OF_A_MODEL_THAT_CALLS_THEM
"""

from __future__ import annotations

import json
import sys
import urllib.error
import urllib.request
from typing import Any


def ask(url: str, path: str, body: object | None = None) -> tuple[int, Any]:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url + path, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            status, content = response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        status, content = error.code, error.read().decode()
    return status, json.loads(content) if content.startswith("{") else content


def main(url: str) -> None:
    # Serving LoRA adapters: the models, each adapter with its base as parent, and a completion.
    models = {model["id"]: model for model in ask(url, "/v1/models")[1]["data"]}
    assert models["travel"]["parent"] == "plex"
    assert models["travel"]["object"] == "model"
    assert {"created", "owned_by", "root"} <= models["travel"].keys()
    plain = {"model": "travel", "prompt": "San Francisco is a", "max_tokens": 7, "temperature": 0}
    status, answer = ask(url, "/v1/completions", plain)
    assert (status, answer["usage"]["completion_tokens"]) == (200, 7)

    # Dynamically serving LoRA adapters.
    load = {"lora_name": "sql_adapter", "lora_path": "tone"}
    status, said = ask(url, "/v1/load_lora_adapter", load)
    assert (status, said) == (200, "Success: LoRA adapter 'sql_adapter' added successfully.")
    status, refusal = ask(url, "/v1/load_lora_adapter", load)
    assert status == 400
    assert "has already been loaded" in refusal["error"]["message"]
    before = ask(url, "/v1/completions", plain | {"model": "sql_adapter"})[1]["choices"]

    # In-place reloading.
    status, said = ask(url, "/v1/load_lora_adapter", load | {"lora_path": "travel", "load_inplace": True})
    assert (status, said) == (200, "Success: LoRA adapter 'sql_adapter' added successfully.")
    after = ask(url, "/v1/completions", plain | {"model": "sql_adapter"})[1]["choices"]
    assert after == answer["choices"] != before

    # Guided, in vLLM's words, with an adapter.
    chat = {"model": "sql_adapter", "messages": [{"role": "user", "content": "Is it so?"}], "max_tokens": 8}
    status, said = ask(url, "/v1/chat/completions", chat | {"structured_outputs": {"choice": ["yes", "no"]}})
    assert said["choices"][0]["message"]["content"] in ("yes", "no"), said

    status, said = ask(url, "/v1/unload_lora_adapter", {"lora_name": "sql_adapter"})
    assert (status, said) == (200, "Success: LoRA adapter 'sql_adapter' removed successfully.")
    status, refusal = ask(url, "/v1/unload_lora_adapter", {"lora_name": "sql_adapter"})
    assert (status, refusal["error"]["type"]) == (404, "NotFoundError")
    status, refusal = ask(url, "/v1/load_lora_adapter", {"lora_name": "sql_adapter", "lora_path": "nowhere"})
    assert (status, refusal["error"]["type"]) == (404, "NotFoundError")
    status, refusal = ask(url, "/v1/completions", plain | {"model": "sql_adapter"})
    assert status == 404


if __name__ == "__main__":
    main(sys.argv[1])
