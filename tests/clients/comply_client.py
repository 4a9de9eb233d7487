"""llm-comply (https://github.com/Oaklight/llm-comply): our answers against OpenAI's schema of chat completions and the
schema of Open Responses; run by `python -m tests.clients`.

python comply_client.py URL_OF_THE_DEMO URL_OF_A_MODEL_WITH_TOOLS URL_OF_A_MODEL_THAT_CALLS_THEM
"""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

FORMATS = {"openai-chat": ("chat-image-input",), "open-responses": ("image-input",)}
"""What each is known to fail: there are no models for images here."""


def check(url: str, kind: str, known: tuple[str, ...]) -> None:
    program = Path(sys.executable).with_name("llm-comply")
    command = [str(program), "--format", kind, "-u", f"{url}/v1", "-k", "none", "-m", "travel", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    found: dict[str, Any] = json.loads(done.stdout)
    results = found["results"]
    for result in results:
        print(f"{kind} {result['id']}: {result['status']} {result.get('errors', '')}")
    failed = tuple(result["id"] for result in results if result["status"] == "failed")
    assert failed == known, failed
    assert sum(result["status"] == "passed" for result in results) >= 7


def sample(url: str, **sampling: float) -> None:
    """Set what the model does for requests that leave it open."""
    body = json.dumps({"sampling": sampling}).encode()
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(f"{url}/v1/adapters/travel", body, headers, method="PATCH")
    urllib.request.urlopen(request, timeout=60).close()


if __name__ == "__main__":
    sample(sys.argv[1], temperature=0)  # at 1, a fourth of its calls go on until they are cut
    for kind, known in FORMATS.items():
        check(sys.argv[1], kind, known)
    sample(sys.argv[1])
