"""What a server says of itself before it is put under load."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import aiohttp
import msgspec

from loraplex.bench.errors import ServerFailed
from loraplex.bench.load.client import Client
from loraplex.bench.load.target import Target
from loraplex.bench.load.workload import Planned

PAUSE_SECONDS = 1.0
"""Between attempts to reach a server that does not answer yet."""


async def model_of(target: Target) -> tuple[str, str]:
    """What requests ask for, and what the results call it: of the flags, or else the first of /v1/models.

    The latter is its `root` where there is one, as in vLLM, where that names the checkpoint and so the tokenizer.
    Raises ServerFailed.
    """
    if target.model is not None:
        return target.served_model_name or target.model, target.model
    url = f"{target.url}/v1/models"
    try:
        found = await _get(target, url)
        first = found["data"][0]["id"]
        root = found["data"][0].get("root") or first
    except aiohttp.ClientResponseError as error:
        raise ServerFailed(
            f"{url} answers {error.status} {error.message}: name a server of the OpenAI API by --base-url, its key by "
            "--api-key, or the model by --model"
        ) from None
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        raise ServerFailed(f"{url} does not answer: {error}. Start the server, or name it by --base-url") from None
    except (msgspec.DecodeError, UnicodeDecodeError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise ServerFailed(f"{url} lists no model: {error!r}. Name one by --model") from None
    return target.served_model_name or first, root


async def version_of(target: Target) -> dict[str, str]:
    """What /version says, of ours its lane and threads too; empty where there is no such path."""
    try:
        found = await _get(target, f"{target.url}/version")
    except (aiohttp.ClientError, OSError, TimeoutError, msgspec.DecodeError, UnicodeDecodeError):
        return {}
    packages = found.get("packages")
    told = found | packages if isinstance(packages, dict) else found
    return {key: str(value) for key, value in told.items() if isinstance(value, str | int | float)}


async def wait_until_ready(client: Client, probe: Planned, seconds: float) -> None:
    """Until a request is answered. Raises ServerFailed after `seconds`, with the last error."""
    deadline = time.monotonic() + seconds
    while True:
        answer = await client.ask(probe.model, probe.body, time.perf_counter())
        if answer.error_kind is None:
            return
        if time.monotonic() + PAUSE_SECONDS > deadline:
            raise ServerFailed(f"no answer within {seconds:g} s: {answer.error_kind}: {answer.error}")
        await asyncio.sleep(PAUSE_SECONDS)


async def _get(target: Target, url: str) -> dict[str, Any]:
    connector = aiohttp.TCPConnector(ssl=not target.insecure)
    timeout = aiohttp.ClientTimeout(total=30)
    async with (
        aiohttp.ClientSession(connector=connector, timeout=timeout, headers=target.headers, trust_env=True) as session,
        session.get(url) as response,
    ):
        response.raise_for_status()
        return msgspec.json.decode(await response.read(), type=dict[str, Any])
