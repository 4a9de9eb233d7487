"""What the API process and the engine process say to each other.

Messages are msgpack-encoded structs (https://jcristharif.com/msgspec), each preceded by its length in bytes as a
big-endian uint32. Commands go down the engine's standard input; reports come up its standard output. Token ids are
plain ints; texts never cross this border.
"""

from __future__ import annotations

from struct import Struct as Layout
from typing import Literal

import msgspec
from msgspec import Struct

from loraplex.server.bundle import AdapterManifest, Base

HEADER = Layout(">I")

Finish = Literal["stop", "length"]
Device = Literal["auto", "cpu", "cuda"]
Engine = Literal["auto", "routed", "generator", "batched"]
Weights = Literal["auto", "int4", "float16"]


class Sampling(Struct, frozen=True, array_like=True):
    """How the next token is chosen. temperature 0 is greedy; top_k 0, top_p 1 and min_p 0 leave every token in.

    In this order: logit bias; repetition, frequency and presence penalty; tokens that may not come; temperature; min-p,
    top-k, top-p.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    seed: int = 0
    """0 .. 2**31 - 1."""
    min_p: float = 0.0
    """Leaves out tokens less likely than min_p times the likeliest."""
    frequency_penalty: float = 0.0
    """Subtracted from a token's logit for each time the answer has it."""
    presence_penalty: float = 0.0
    """Subtracted from the logit of each token that the answer has."""
    logit_bias: dict[int, float] = {}
    """Added to logits, by token id."""
    min_tokens: int = 0
    """Tokens before which nothing ends the answer; not in guided answers, which end where their guide does."""
    stop_tokens: list[int] = []
    """Ids that end the answer, besides the base's own end tokens."""
    ignore_eos: bool = False
    """The base's end tokens do not end the answer."""
    logprobs: int | None = None
    """How many of the likeliest tokens to report with each token, by the model's own distribution; None: nothing."""
    prompt_logprobs: int | None = None
    """The same for the tokens of the prompt, none of which is then taken from an earlier request; None: nothing."""
    seed_given: bool = False
    """The client chose the seed, and counts on the same answer to the same request."""


_PLAIN = Sampling()


class Guide(Struct, frozen=True, array_like=True):
    """What an answer must be: JSON of a schema, a match of a regular expression, a sentence of a Lark grammar."""

    kind: Literal["json_schema", "regex", "grammar"]
    text: str


class Routed(Struct, frozen=True):
    """What the routed lane alone is told."""

    paged: str | None
    """Folder of the base's paged variant."""
    adapters: list[str]
    """Folders of adapters that will be loaded, so that there is room for them from the start."""
    cache: str | None
    """Folder for linked models; None leaves it to the lane."""
    weights: Weights
    max_linked: int
    """Adapters in the graph at a time; 0 leaves it to the lane."""
    prefix_cache: bool
    cuda_graphs: bool


class Start(Struct, tag=True, frozen=True):
    """The first command: load the base found in `folder`."""

    folder: str
    base: Base
    device: Device
    threads: int
    prefill_chunk: int
    """Prompt tokens at once; 0 leaves it to the lane."""
    telemetry: bool
    log_level: str
    log_format: Literal["console", "json"]
    engine: Engine
    kv_bytes: int
    """Memory for keys and values; 0 leaves it to the lane."""
    max_running: int
    """Sequences that will run at the same time; 0 leaves it to the lane."""
    routed: Routed


class LoadAdapter(Struct, tag=True, frozen=True):
    """Check the adapter in `folder` and make it available; answered by AdapterLoaded or AdapterRefused."""

    name: str
    folder: str


class UnloadAdapter(Struct, tag=True, frozen=True):
    """Forget an adapter that no sequence uses any more; answered by AdapterUnloaded, even for an unknown one."""

    name: str


class PinAdapter(Struct, tag=True, frozen=True):
    """Never give an adapter's place in the model to another, or do so again; unknown ones are ignored. Not answered."""

    name: str
    pinned: bool


class Submit(Struct, tag=True, frozen=True):
    """Generate one sequence. The prompt is validated: its ids are in range and it leaves room for max_tokens."""

    sequence: int
    adapter: str | None
    prompt: list[int]
    max_tokens: int
    sampling: Sampling
    guide: Guide | None = None

    def asks_for(self, fields: frozenset[str]) -> str | None:
        """The first of these fields of Sampling, or "guide", that this sets; None where it sets none."""
        if "guide" in fields and self.guide is not None:
            return "guide"
        names = sorted(fields - {"guide"})
        return next((name for name in names if getattr(self.sampling, name) != getattr(_PLAIN, name)), None)


class Cancel(Struct, tag=True, frozen=True):
    """Stop a sequence, of which nothing more is reported; unknown and finished ones are ignored."""

    sequence: int


class Ping(Struct, tag=True, frozen=True):
    """Answered by Pong between two steps."""


class Pong(Struct, tag=True, frozen=True):
    """The engine goes on from step to step."""


class Started(Struct, tag=True, frozen=True):
    """The base is loaded."""

    lane: str
    device: str
    threads: int
    versions: dict[str, str]
    unsupported: list[str]
    """Fields of Sampling, and "guide", that the lane cannot honour."""
    max_running: int
    """Sequences that should run at the same time."""
    kv_tokens: int | None = None
    """Tokens that the KV cache has room for; None where that is not known."""
    places: int | None = None
    """Adapters that the model has room for at the same time; None where each has a place of its own."""


class StartFailed(Struct, tag=True, frozen=True):
    """The base cannot be loaded; the engine process ends."""

    message: str


class AdapterLoaded(Struct, tag=True, frozen=True):
    name: str
    manifest: AdapterManifest


class AdapterRefused(Struct, tag=True, frozen=True):
    name: str
    message: str


class AdapterUnloaded(Struct, tag=True, frozen=True):
    """The folder that an adapter was loaded from is read no more."""

    name: str


class Logprobs(Struct, frozen=True, array_like=True):
    """Natural logarithms of probabilities at temperature 1, before anything of `Sampling` is applied."""

    chosen: float
    top: list[tuple[int, float]]
    """The likeliest tokens, likeliest first."""


class Output(Struct, frozen=True, array_like=True):
    """What one sequence gained in a step. With `finish` or `error` set it is the sequence's last."""

    sequence: int
    tokens: list[int]
    finish: Finish | None = None
    error: str | None = None
    logprobs: list[Logprobs] | None = None
    """One for each token, where asked for."""
    cached: int = 0
    """Prompt tokens that need not be computed; in the sequence's first output with tokens."""
    refused: bool = False
    """The error is the request's, not the engine's."""
    prompt_logprobs: list[Logprobs] | None = None
    """One for each token of the prompt but the first, where asked for; in the sequence's first output with tokens."""
    lane: str | None = None
    """The lane that answers, where it is another one beside the engine's own."""


class Step(Struct, tag=True, frozen=True):
    """Everything one step of the engine produced, in one message."""

    outputs: list[Output]
    kv_usage: float | None = None
    """Share of the KV cache that running sequences hold or may still need; None where that is not known."""


Command = Start | LoadAdapter | UnloadAdapter | PinAdapter | Submit | Cancel | Ping
Report = Started | StartFailed | AdapterLoaded | AdapterRefused | AdapterUnloaded | Step | Pong

_encoder = msgspec.msgpack.Encoder()
_commands: msgspec.msgpack.Decoder[Command] = msgspec.msgpack.Decoder(Command)
_reports: msgspec.msgpack.Decoder[Report] = msgspec.msgpack.Decoder(Report)


def pack(message: Command | Report) -> bytes:
    """One message with its length in front, ready to write."""
    body = _encoder.encode(message)
    return HEADER.pack(len(body)) + body


def unpack_command(body: bytes) -> Command:
    return _commands.decode(body)


def unpack_report(body: bytes | bytearray) -> Report:
    return _reports.decode(body)
