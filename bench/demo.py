"""The README's table: time to first token and tokens/s of the demo bundle, through HTTP, on this machine.

    python -m loraplex.bench.demo [--rounds 5]

Starts a server of its own, sends streaming requests round robin over the base and the three adapters, 1, 4 and 8 at a
time, and prints a Markdown table: medians over the rounds.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from importlib.resources import as_file, files
from itertools import cycle, islice
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import httpx
from cyclopts import App
from msgspec import Struct

from loraplex.bench.errors import ServerFailed
from loraplex.bench.load.client import opened
from loraplex.bench.load.driver import Measured, Tally, drive
from loraplex.bench.load.event_loop import run
from loraplex.bench.load.flags import AtLeastOne
from loraplex.bench.load.options import Adapters, Data, Traffic
from loraplex.bench.load.prompt import Prompt
from loraplex.bench.load.sampling import Sampling
from loraplex.bench.load.target import Target
from loraplex.bench.load.workload import Planned, Workload
from loraplex.bench.machine import processor
from loraplex.bench.peers.peer import free_port, started
from loraplex.bench.table import markdown
from loraplex.server.errors import LoraplexError

PROMPTS = {
    "travel": "What should I see in Paris?",
    "tone": "I lost my keys and cried all night.",
    "json": "Tell me about France.",
    None: "Tell me about Paris.",
}
"""By adapter; None is the base."""
LONGEST = 256
"""Tokens of an answer; all end before."""
STREAMS = (1, 4, 8)
REQUESTS_PER_STREAM = 8

app = App(help=__doc__)


class Round(Struct, frozen=True):
    first_token: float
    """Median, in seconds."""
    tokens_per_second: float


def plan(url: str, count: int) -> list[Planned]:
    """So many requests, in turn to every model that the server lists."""
    cards = httpx.get(f"{url}/v1/models").json()["data"]
    prompts = [
        Prompt(content=PROMPTS[card["id"] if card["parent"] else None], output_tokens=LONGEST, model=card["id"])
        for card in cards
    ]
    target, sampling = Target(backend="openai-chat"), Sampling(temperature=0)
    workload = Workload(target, Data(), sampling, Adapters(), "")
    return workload.plan(list(islice(cycle(prompts), count)), Traffic())


async def measure(url: str, streams: int) -> Round:
    """Keep `streams` busy with REQUESTS_PER_STREAM requests each. Raises ServerFailed."""
    async with opened(f"{url}/v1/chat/completions", {}, 60, insecure=False) as client:
        measured = await drive(client, plan(url, streams * REQUESTS_PER_STREAM), streams, Tally())
    return _round(measured)


def _round(measured: Measured) -> Round:
    for each in measured.requests:
        if each.error_kind is not None:
            raise ServerFailed(f"{each.model}: {each.error_kind}: {each.error}")
    tokens = sum(each.output_tokens for each in measured.requests)
    return Round(median(each.ttft for each in measured.requests), tokens / measured.duration)


def table(found: Sequence[Mapping[int, Round]]) -> str:
    """Medians over the rounds, each by the number of requests at once."""
    rows = [
        (
            str(streams),
            f"{median(each[streams].first_token for each in found) * 1000:.1f}",
            f"{median(each[streams].tokens_per_second for each in found):.0f}",
        )
        for streams in STREAMS
    ]
    return markdown(("requests at once", "TTFT, median ms", "tokens/s"), rows)


@app.default
def main(*, rounds: AtLeastOne = 5) -> None:
    """Print the table."""
    url = f"http://127.0.0.1:{(port := free_port())}"
    try:
        with as_file(files("loraplex.adapters") / "demo") as bundle, TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "loraplex.server", "serve", str(bundle), "--port", str(port)]
            with started(command, url, Path(folder) / "server.log"):
                run(measure(url, 1))
                found = [{streams: run(measure(url, streams)) for streams in STREAMS} for _ in range(rounds)]
                version = httpx.get(f"{url}/version").json()
    except (LoraplexError, OSError) as error:
        sys.exit(f"loraplex: {error}")
    packages = ", ".join(f"{name} {number}" for name, number in version["packages"].items())
    setup = (
        f"{processor()}, {version['threads']} threads, lane {version['lane']}; {packages}; medians of {rounds} rounds."
    )
    print(f"{table(found)}\n\n{setup}")


if __name__ == "__main__":
    app()
