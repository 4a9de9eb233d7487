"""The examples of the official `openai` package, as they are, against servers that call an adapter by the names of
OpenAI's models; run by `python -m tests.clients`.

python openai_client.py URL_OF_THE_DEMO URL_OF_A_MODEL_WITH_TOOLS URL_OF_A_MODEL_THAT_CALLS_THEM
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import urllib.request
from pathlib import Path

TALKING = ("demo", "async_demo", "streaming", "httpx2_client", "responses_input_tokens")
"""For the demo, which answers."""
CALLING = (
    "parsing",
    "parsing_stream",
    "parsing_tools",
    "parsing_tools_stream",
    "responses/streaming",
    "responses/streaming_tools",
    "responses/structured_outputs",
    "responses/structured_outputs_tools",
)
"""For the model that calls tools, and whose JSON comes to an end."""


def run(examples: Path, names: tuple[str, ...], url: str, adapter: str) -> None:
    scripts = [examples / f"{name}.py" for name in names]
    models = {model for script in scripts for model in re.findall(r'model="([^"]+)"', script.read_text())}
    body = json.dumps({"aliases": sorted(models)}).encode()
    request = urllib.request.Request(
        f"{url}/v1/adapters/{adapter}", body, {"content-type": "application/json"}, method="PATCH"
    )
    urllib.request.urlopen(request, timeout=30).close()
    environment = os.environ | {"OPENAI_BASE_URL": f"{url}/v1", "OPENAI_API_KEY": "none"}
    for script in scripts:
        done = subprocess.run(
            [sys.executable, script], env=environment, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, f"{script.name}:\n{done.stdout}\n{done.stderr}"
        assert done.stdout.strip(), f"{script.name} printed nothing"
        print(f"{script.relative_to(examples)}: {len(done.stdout)} characters, as expected")


if __name__ == "__main__":
    (unpacked,) = Path(sys.prefix, "source").glob("openai-*/examples")
    run(unpacked, TALKING, sys.argv[1], "travel")
    run(unpacked, CALLING, sys.argv[3], "caller")
