"""Whether other benchmark clients measure what `bench serve` measures, on our real server.

    python -m loraplex.bench.experiments.independent_clients BUNDLE --aiperf PROGRAM --guidellm PROGRAM [--rounds 5]

PROGRAM is `aiperf` or `guidellm`, each in an environment of its own. `loraplex serve BUNDLE` runs on the first core of
this machine with one thread, the clients on the others, so that a client that takes processor time does not slow down
what it measures. Every round runs each client and, beside it, `bench serve` with requests of the same lengths, in an
order that turns. Every run has prompts of its own: the server would remember those of the run before. Requests are for
all adapters in turn; guidellm asks for one model a run, another one each round.

The server's log has times of its own for each request, and a relay before it notes when each token passed, which the
log does not tell. A client's figures are told as shares of these, over the same requests: so a machine that was slower
during one run than during the other makes no difference. Agreement is the client's share by ours, the median over the
rounds. Tokens/s are over the time from the first request's start to the last one's end, for all alike; the clients' own
figures, each by its own clock, have a row of their own.
"""

from __future__ import annotations

import os
import random
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from datetime import datetime
from importlib.metadata import version
from itertools import count, product
from pathlib import Path
from statistics import fmean, median
from typing import Annotated

import msgspec
from cyclopts import App, Parameter
from msgspec import Struct

from loraplex.bench.errors import BenchFailed
from loraplex.bench.experiments.clients import Aiperf, Asked, Client, Figures, Guidellm, Load, Ours
from loraplex.bench.experiments.relay import Relay, relayed
from loraplex.bench.load.options import Data
from loraplex.bench.load.random_prompts import random_prompts
from loraplex.bench.load.vocabulary import Vocabulary
from loraplex.bench.machine import processor
from loraplex.bench.peers.peer import free_port, started
from loraplex.bench.table import markdown
from loraplex.server.bundle import Bundle
from loraplex.server.errors import LoraplexError

WARM_UP = 8
"""Requests before the first round."""
TITLES = {
    "ttft": "TTFT, ms",
    "tpot": "TPOT, ms",
    "itl": "ITL, ms",
    "itl_mean": "ITL, mean, ms",
    "e2el": "E2EL, ms",
    "tokens_per_second": "tokens/s",
    "told_tokens_per_second": "tokens/s by its own clock",
}

app = App(help=__doc__)


class Shape(Struct, frozen=True):
    """What every run sends."""

    requests: int
    prompt: int
    tokens: int
    spread: float
    """Answers are tokens * (1 - spread) to tokens * (1 + spread) long."""
    rate: float
    streams: int


class Record(Struct, frozen=True):
    """A request as the server's log tells it; lines of other kinds have none of these."""

    time: datetime
    """Of its end."""
    path: str = ""
    status: int = 0
    seconds: float = 0.0
    """From its arrival."""
    first_token_seconds: float | None = None
    prompt_tokens: int = 0
    generated_tokens: int = 0
    cached_tokens: int = 0


RECORDS = msgspec.json.Decoder(Record)


class Side(Struct, frozen=True):
    """One run of a client, and what the server's log and the relay have of it."""

    told: Figures
    served: Figures

    def share(self, key: str) -> float:
        """The client's figure by the server's."""
        return float(getattr(self.told, key) / getattr(self.served, key.removeprefix("told_")))


class Pair(Struct, frozen=True):
    """Both clients in one round."""

    ours: Side
    theirs: Side


class Server(Struct, frozen=True):
    """Ours, while it runs."""

    relay: Relay
    log: Path
    vocabulary: Vocabulary
    tokenizer: Path
    models: Sequence[str]
    cores: frozenset[int]
    """For the clients."""

    def load(self, shape: Shape, seed: int, models: Sequence[str], lengths: random.Random) -> Load:
        data = Data(num_prompts=shape.requests, random_input_len=shape.prompt, seed=seed)
        low, high = round(shape.tokens * (1 - shape.spread)), round(shape.tokens * (1 + shape.spread))
        requests = [
            Asked(str(each.content), models[index % len(models)], lengths.randint(low, high))
            for index, each in enumerate(random_prompts(data, self.vocabulary))
        ]
        return Load(self.relay.url, self.tokenizer, requests, shape.rate, shape.streams, self.cores)

    def served(self, records: Sequence[Record], intervals: Sequence[float]) -> Figures:
        """What the log and the relay have of one run."""
        first = [each.first_token_seconds or 0.0 for each in records]
        decoded = [
            (each.seconds - began) / (each.generated_tokens - 1)
            for each, began in zip(records, first, strict=True)
            if each.generated_tokens > 1
        ]
        ended = [each.time.timestamp() for each in records]
        span = max(ended) - min(end - each.seconds for end, each in zip(ended, records, strict=True))
        return Figures(
            1000 * median(first),
            1000 * median(decoded),
            1000 * median(intervals),
            1000 * fmean(intervals),
            1000 * median(each.seconds for each in records),
            sum(each.generated_tokens for each in records) / span,
            None,
        )


def measure(server: Server, client: Client, load: Load) -> Side:
    """One run. Raises BenchFailed."""
    before, _ = server.log.stat().st_size, server.relay.intervals()
    with tempfile.TemporaryDirectory() as folder:
        told = client.measure(load, Path(folder))
    lines = server.log.read_bytes()[before:].splitlines()
    records = [each for each in map(RECORDS.decode, lines) if each.path == "/v1/completions" and each.status == 200]
    if len(records) != len(load.requests) or any(each.cached_tokens for each in records):
        raise BenchFailed(
            f"the server answered {len(records)} requests of {client.name}, not {len(load.requests)}, and remembered "
            f"{sum(each.cached_tokens for each in records)} of their tokens"
        )
    if sum(each.generated_tokens for each in records) != sum(each.tokens for each in load.requests):
        raise BenchFailed(f"the answers of {client.name} are not as long as was asked for")
    return Side(told, server.served(records, server.relay.intervals()))


def compare(server: Server, client: Client, shape: Shape, turn: int, seeds: Iterator[int]) -> Pair:
    """One round of a client and ours, in an order that turns. Raises BenchFailed."""
    models = server.models if client.several else [server.models[turn % len(server.models)]]
    found: dict[str, Side] = {}
    sides: list[Client] = [Ours(), client]
    for each in sides[:: 1 if turn % 2 else -1]:
        load = server.load(shape, next(seeds), models, random.Random(turn))
        found[each.name] = measure(server, each, load)
    return Pair(found[Ours.name], found[client.name])


def table(client: str, pairs: Sequence[Pair]) -> str:
    """A Markdown table."""
    rows = []
    for key, title in TITLES.items():
        sides = [[getattr(side.told, key) for side in (pair.ours, pair.theirs)] for pair in pairs]
        if any(value is None for values in sides for value in values):
            continue
        cells = [title]
        for place in (0, 1):
            own = [(pair.ours, pair.theirs)[place] for pair in pairs]
            cells.append(f"{median(values[place] for values in sides):.2f}")
            cells.append(f"{median(side.share(key) for side in own):.3f}")
        agreement = [pair.theirs.share(key) / pair.ours.share(key) for pair in pairs]
        rows.append((*cells, f"{median(agreement):.3f} ({min(agreement):.3f} - {max(agreement):.3f})"))
    ours, theirs = ([getattr(pair, side).told.client_cores for pair in pairs] for side in ("ours", "theirs"))
    rows.append(("cores of the client", f"{median(ours):.2f}", "", f"{median(theirs):.2f}", "", ""))
    return markdown(("", "bench serve", "of the server's", client, "of the server's", "agreement (range)"), rows)


@app.default
def main(
    bundle: Path,
    /,
    *,
    aiperf: Path | None = None,
    guidellm: Path | None = None,
    engine: str = "auto",
    rate: float = 0.0,
    streams: Annotated[tuple[int, ...], Parameter(consume_multiple=True)] = (1, 4),
    requests: int = 40,
    prompt: int = 64,
    tokens: int = 48,
    spread: float = 0.5,
    rounds: int = 5,
) -> None:
    """Print a table for each client and number of streams; with a rate, for each client."""
    cores = sorted(os.sched_getaffinity(0))
    clients: list[Client] = [Aiperf(aiperf)] if aiperf else []
    clients += [Guidellm(guidellm)] if guidellm else []
    if not clients or len(cores) < 2:
        sys.exit("loraplex: give --aiperf or --guidellm, on a machine of two cores at least")
    shapes = [Shape(requests, prompt, tokens, spread, rate, each) for each in (streams if not rate else (0,))]
    found: dict[tuple[str, Shape], list[Pair]] = defaultdict(list)
    opened = Bundle.open(bundle)
    tokenizer = opened.variant("generator")
    url = f"http://127.0.0.1:{(port := free_port())}"
    # Inherited by the server and its engine.
    command = ["taskset", "-c", str(cores[0]), sys.executable, "-m", "loraplex.server", "serve", str(bundle)]
    command += ["--threads", "1", "--engine", engine, "--port", str(port), "--log-format", "json"]
    os.sched_setaffinity(0, cores[1:])  # the relay's, too
    try:
        with (
            tempfile.TemporaryDirectory() as scratch,
            started(command, url, log := Path(scratch) / "server.log"),
            relayed(port) as relay,
        ):
            models = list(opened.manifest.adapters) or [opened.manifest.base.name]
            server = Server(relay, log, Vocabulary(str(tokenizer)), tokenizer, models, frozenset(cores[1:]))
            warm = Shape(WARM_UP, prompt, 4, 0, 0, 1)
            measure(server, Ours(), server.load(warm, 10**6, models, random.Random(0)))
            seeds = count()
            for turn, shape, client in product(range(rounds), shapes, clients):
                name = f"round {turn + 1}, {_load(shape)}"
                try:
                    pair = compare(server, client, shape, turn, seeds)
                except BenchFailed as error:  # of one client, which loses no other's figures
                    print(f"{name}, {client.name} left out: {error.message}", file=sys.stderr, flush=True)
                    continue
                found[client.name, shape].append(pair)
                print(f"{name}, {client.name}: {pair}", file=sys.stderr, flush=True)
    except (LoraplexError, OSError) as error:
        sys.exit(f"loraplex: {error}")
    for shape in shapes:
        for client in clients:
            if pairs := found[client.name, shape]:
                print(f"\n{client.name}, {_load(shape)}, {len(pairs)} rounds:\n\n{table(client.name, pairs)}")
    print(f"\n{processor()}, a core for the server, another for the client; loraplex {version('loraplex')}.")
    lengths = f"{prompt} tokens in and {tokens} out, give or take {spread:.0%}"
    print(f"{opened.manifest.base.name}, {len(models)} adapters; {rounds} rounds of {requests} requests, {lengths}.")


def _load(shape: Shape) -> str:
    if shape.rate:
        return f"{shape.rate:g} requests a second"
    return f"{shape.streams} streams" if shape.streams > 1 else "1 stream"


if __name__ == "__main__":
    app()
