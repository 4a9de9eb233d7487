"""The README's table: time to first token and tokens/s of the demo bundle, through HTTP, on this machine.

    python -m loraplex.bench.demo [--rounds 5]

Starts a server of its own, sends streaming requests round robin over the base and the three adapters, 1, 4 and 8 at a
time, and prints a Markdown table: medians over the rounds.
"""

from __future__ import annotations

import asyncio
import re
import statistics
import subprocess
import sys
import time
from importlib.resources import as_file, files
from itertools import cycle, islice

import httpx
from cyclopts import App
from msgspec import Struct, json

from loraplex.bench.machine import processor

PROMPTS = {
    "travel": "What should I see in Paris?",
    "tone": "I lost my keys and cried all night.",
    "json": "Tell me about France.",
    None: "Tell me about Paris.",
}
"""By adapter; None is the base."""
REQUESTS_PER_STREAM = 8

app = App(help=__doc__)


class Answer(Struct, frozen=True):
    """One streamed answer: seconds to its first text, and its tokens."""

    first_token: float
    tokens: int


class Round(Struct, frozen=True):
    first_token: float
    """Median, in seconds."""
    tokens_per_second: float


async def ask(client: httpx.AsyncClient, model: str, prompt: str) -> Answer:
    body = {
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    start = time.perf_counter()
    first: float | None = None
    tokens = 0
    async with client.stream("POST", "/v1/chat/completions", json=body) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            if not line.startswith("data: {"):
                continue
            chunk = json.decode(line.removeprefix("data: "))
            if first is None and chunk["choices"] and chunk["choices"][0]["delta"].get("content"):
                first = time.perf_counter() - start
            if chunk["usage"]:
                tokens = chunk["usage"]["completion_tokens"]
    assert first is not None, f"{model} gave no text"
    return Answer(first, tokens)


async def measure(client: httpx.AsyncClient, models: dict[str, str], concurrency: int) -> Round:
    """Keep `concurrency` streams busy with REQUESTS_PER_STREAM requests each."""
    work = islice(cycle(models.items()), concurrency * REQUESTS_PER_STREAM)
    answers: list[Answer] = []

    async def stream() -> None:
        for model, prompt in work:
            answers.append(await ask(client, model, prompt))

    start = time.perf_counter()
    await asyncio.gather(*(stream() for _ in range(concurrency)))
    seconds = time.perf_counter() - start
    return Round(
        statistics.median(answer.first_token for answer in answers), sum(answer.tokens for answer in answers) / seconds
    )


async def run(url: str, rounds: int) -> str:
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        cards = (await client.get("/v1/models")).json()["data"]
        version = (await client.get("/version")).json()
        models = {card["id"]: PROMPTS[card["id"] if card["parent"] else None] for card in cards}
        await measure(client, models, 1)
        results: dict[int, list[Round]] = {1: [], 4: [], 8: []}
        for _ in range(rounds):
            for concurrency, found in results.items():
                found.append(await measure(client, models, concurrency))
    packages = ", ".join(f"{name} {number}" for name, number in version["packages"].items())
    lines = [
        "| requests at once | TTFT, median ms | tokens/s |",
        "|---|---|---|",
        *(
            f"| {concurrency} | {statistics.median(each.first_token for each in found) * 1000:.1f} "
            f"| {statistics.median(each.tokens_per_second for each in found):.0f} |"
            for concurrency, found in results.items()
        ),
        "",
        f"{processor()}, {version['threads']} threads, lane {version['lane']}; {packages}; medians of {rounds} rounds.",
    ]
    return "\n".join(lines)


@app.default
def main(*, rounds: int = 5) -> None:
    with as_file(files("loraplex.adapters") / "demo") as bundle:
        server = subprocess.Popen(
            [sys.executable, "-m", "loraplex.server", "serve", str(bundle), "--port", "0"],
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            assert server.stderr is not None
            url = next(found[1] for line in server.stderr if (found := re.search(r"ready on (http://\S+);", line)))
            # Nobody reads the log from here on; a full pipe would stop the server.
            drain = asyncio.to_thread(server.stderr.read)

            async def both() -> str:
                task = asyncio.create_task(drain)
                try:
                    return await run(url, rounds)
                finally:
                    server.terminate()
                    await task

            print(asyncio.run(both()))
        finally:
            server.terminate()
            server.wait()


if __name__ == "__main__":
    app()
