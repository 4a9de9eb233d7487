"""Run client libraries, and suites that check a server, against servers of ours:

    python -m tests.clients [langchain] [litellm] [openai] [comply] [vllm]

Each gets a virtual environment under .cache/clients, made on the first run: LiteLLM pins another major version of the
`openai` package than ours, and none of them is worth its dependencies in the lock of this project.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tempfile
import venv
from pathlib import Path

from tests.server.bytes_bundle import TEMPLATES, make_bundle
from tests.server.conftest import DEMO
from tests.server.process import serving

HERE = Path(__file__).parent
ENVIRONMENTS = HERE.parents[1] / ".cache" / "clients"
PACKAGES = {
    "langchain": ["langchain-openai==1.7.3"],
    "litellm": ["litellm==1.106.2", "mcp"],
    "openai": ["openai==3.52.0", "rich"],
    "comply": ["llm-comply==0.5.0"],
    "vllm": [],
}
SOURCES = {"openai": "openai==3.52.0"}
"""Packages whose source distribution is unpacked too, for the examples in it."""
CALLER = {"<tool_call>": 80.0, "</s>": 40.0, '"': 15.0, "]": 15.0, "}": 15.0}
"""Makes a model that calls a tool where it has any, and comes to an end."""


def main(clients: list[str]) -> int:
    """0 if every client found what it expects."""
    failed = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        tools = make_bundle(folder / "tools", TEMPLATES["hermes"])
        caller = make_bundle(folder / "caller", TEMPLATES["hermes"], preferred=CALLER, adapter="caller")
        managed = ("--dev", "--adapter-dir", str(DEMO / "adapters"))
        with (
            serving(DEMO, folder / "demo.log", *managed) as demo,
            serving(tools, folder / "tools.log") as calling,
            serving(caller, folder / "caller.log", "--dev") as eager,
        ):
            for client in clients:
                script = HERE / f"{client}_client.py"
                run = subprocess.run([python(client), script, demo.url, calling.url, eager.url])
                print(f"{client}: {'as expected' if run.returncode == 0 else 'failed'}", flush=True)
                if run.returncode:
                    failed.append(client)
        for log in folder.glob("*.log"):
            if "Traceback" in log.read_text():
                failed.append(log.name)
                print(log.read_text())
    return len(failed)


def python(client: str) -> Path:
    """The interpreter of a client's environment."""
    folder = ENVIRONMENTS / client
    found = folder / "bin" / "python"
    if not (folder / "complete").exists():
        venv.create(folder, with_pip=True, clear=True)
        if PACKAGES[client]:
            subprocess.run([found, "-m", "pip", "install", "--quiet", *PACKAGES[client]], check=True)
        if source := SOURCES.get(client):
            options = ["--quiet", "--no-deps", "--no-binary", ":all:", "--dest", str(folder)]
            subprocess.run([found, "-m", "pip", "download", *options, source], check=True)
            (archive,) = folder.glob("*.tar.gz")
            with tarfile.open(archive) as opened:
                opened.extractall(folder / "source", filter="data")
        (folder / "complete").touch()
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or list(PACKAGES)))
