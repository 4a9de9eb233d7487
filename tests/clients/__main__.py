"""Run LangChain and LiteLLM against servers of ours:

    python -m tests.clients [langchain] [litellm]

Each gets a virtual environment under .cache/clients, made on the first run: LiteLLM pins another major version of the
`openai` package than ours, and neither is worth its dependencies in the lock of this project.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import venv
from pathlib import Path

from tests.server.bytes_bundle import TEMPLATES, make_bundle
from tests.server.conftest import DEMO
from tests.server.process import serving

HERE = Path(__file__).parent
ENVIRONMENTS = HERE.parents[1] / ".cache" / "clients"
PACKAGES = {"langchain": ["langchain-openai==1.7.3"], "litellm": ["litellm==1.106.2", "mcp"]}


def main(clients: list[str]) -> int:
    """0 if every client found what it expects."""
    failed = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        tools = make_bundle(folder / "tools", TEMPLATES["hermes"])
        with serving(DEMO, folder / "demo.log") as demo, serving(tools, folder / "tools.log") as calling:
            for client in clients:
                run = subprocess.run([python(client), HERE / f"{client}_client.py", demo.url, calling.url])
                print(f"{client}: {'as expected' if run.returncode == 0 else 'failed'}", flush=True)
                if run.returncode:
                    failed.append(client)
    return len(failed)


def python(client: str) -> Path:
    """The interpreter of a client's environment."""
    folder = ENVIRONMENTS / client
    found = folder / "bin" / "python"
    if not (folder / "complete").exists():
        venv.create(folder, with_pip=True, clear=True)
        subprocess.run([found, "-m", "pip", "install", "--quiet", *PACKAGES[client]], check=True)
        (folder / "complete").touch()
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or list(PACKAGES)))
