"""The errors of a benchmark; like the server's they are one line that names what is wrong and how to mend it."""

from __future__ import annotations

from loraplex.server.errors import LoraplexError

INTERRUPTED = 130
"""The exit status that shells give what SIGINT ended: 128 and the signal's number."""


class BenchFailed(LoraplexError):
    """Base of what `loraplex.bench` raises itself. Never on the wire."""

    code = "bench_failed"


class OptionsInvalid(BenchFailed):
    """A flag, or flags together, say what cannot be."""

    code = "options_invalid"


class WorkloadInvalid(BenchFailed):
    """A dataset or a trace is not of its format; the message names the line."""

    code = "workload_invalid"


class ResultInvalid(BenchFailed):
    """A file of results cannot be read."""

    code = "result_invalid"


class ServerFailed(BenchFailed):
    """The server does not answer, or not as a server of the OpenAI API does."""

    code = "server_failed"


class Interrupted(BenchFailed):
    """SIGINT came before there was anything to tell."""

    code = "interrupted"
