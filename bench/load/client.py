"""The HTTP client: sends one request and times its answer.

aiohttp on uvloop, because the client must not be the limit: for 64 streams of one small chunk each, one core read a
chunk in 25 µs with it, in 44 µs with aiohttp on asyncio's own loop, and in 70 µs with httpx (2 vCPU AMD EPYC).
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import pairwise

import aiohttp
import msgspec

from loraplex.bench.load.stream import Answer
from loraplex.bench.results.result import Request

KEEP_ALIVE_SECONDS = 3.0
"""Less than uvicorn's 5 s: a connection that the server closes at the moment of its next use is an error of ours."""
LONGEST_ERROR = 2000
"""Characters of an error's text that are kept."""
LONGEST_EXCERPT = 200
"""Characters that are told of an answer that is no stream."""

Progress = Callable[[int], None]
"""Called with the number of chunks with tokens that came together."""


class Client:
    """Sends requests to one URL; `opened` makes one."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self._url = url

    async def ask(
        self,
        model: str,
        body: bytes,
        began: float,
        progress: Progress | None = None,
        headers: dict[str, str] | None = None,
    ) -> Request:
        """Send a request and read its answer to the end. Errors are in what it returns.

        `began` is the run's beginning in time.perf_counter(). Without `usage` in the answer its `output_tokens` is 0.
        """
        answer = Answer()
        start = time.perf_counter()
        kind, error = None, ""
        try:
            async with self._session.post(self._url, data=body, headers=headers) as response:
                if response.status != 200:
                    kind, error = await _refusal(response)
                else:
                    begin = b""
                    async for data in response.content.iter_any():
                        begin = begin or data
                        tokens = answer.feed(data, time.perf_counter())
                        if tokens and progress:
                            progress(tokens)
                    if not answer.events:
                        kind, error = "no_stream", _told(response.content_type, begin)
        except TimeoutError:
            kind, error = "timeout", "the answer did not end within --request-timeout"
        except (msgspec.DecodeError, UnicodeDecodeError) as failure:
            kind, error = "broken_stream", f"a chunk is not what the API says: {failure}"
        except aiohttp.ClientPayloadError:
            kind, error = "broken_stream", "the connection ended in the middle of the answer"
        except (aiohttp.ServerDisconnectedError, ConnectionResetError) as failure:
            kind = "broken_stream" if answer.ended else "connection"
            error = str(failure) or type(failure).__name__
        except (aiohttp.ClientError, OSError) as failure:
            kind, error = "connection", str(failure) or type(failure).__name__
        if kind is None and answer.error is not None:
            kind, error = f"stream:{answer.error.code or answer.error.type or 'error'}", answer.error.message
        if kind is None and not answer.complete:
            kind, error = "broken_stream", "the stream ended before the answer did"
        if kind is None and answer.ended is None:
            kind, error = "no_token", "no chunk of the stream had a token"
        return _request(model, answer, start, began, kind, error)


@asynccontextmanager
async def opened(url: str, headers: dict[str, str], limit: float, *, insecure: bool) -> AsyncIterator[Client]:
    """A client with as many connections as there are requests, each of which may take `limit` seconds."""
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_SECONDS, ssl=not insecure)
    async with aiohttp.ClientSession(
        connector=connector,
        timeout=aiohttp.ClientTimeout(total=limit),
        headers={"content-type": "application/json"} | headers,
        trust_env=True,
    ) as session:
        yield Client(session, url)


async def _refusal(response: aiohttp.ClientResponse) -> tuple[str, str]:
    """Kind and message of an answer that is an error."""
    content = await response.read()
    kind = f"http_{response.status}"
    try:
        error = msgspec.json.decode(content)["error"]
        message, code = str(error["message"]), error.get("code")
    except (msgspec.DecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError):
        return kind, content.decode(errors="replace")[:LONGEST_ERROR] or response.reason or ""
    # Some servers repeat the status as the code.
    return kind if code in (None, response.status) else f"{kind}:{code}", message[:LONGEST_ERROR]


def _told(kind: str, content: bytes) -> str:
    """What came where events should have."""
    excerpt = content.decode(errors="replace")[:LONGEST_EXCERPT].strip()
    return f"the answer is no stream of events but {kind}: {excerpt}" if excerpt else "the answer is empty"


def _request(model: str, answer: Answer, start: float, began: float, kind: str | None, error: str) -> Request:
    times, usage = answer.times, answer.usage
    first = times[0] if times else answer.ended
    return Request(
        model=model,
        start=start - began,
        ttft=first - start if first is not None else 0.0,
        itls=[later - earlier for earlier, later in pairwise(times)],
        latency=answer.ended - start if answer.ended is not None else 0.0,
        input_tokens=(usage.prompt_tokens or 0) if usage else 0,
        output_tokens=(usage.completion_tokens or 0) if usage else 0,
        text=answer.text,
        thinking=answer.thinking,
        error=error,
        error_kind=kind,
        finish_reason=answer.finish_reason,
        usage_tokens=usage.completion_tokens if usage else None,
        cached_tokens=usage.prompt_tokens_details.cached_tokens if usage and usage.prompt_tokens_details else None,
    )
