"""Guides checked before a request is taken on: a schema that cannot be compiled is the client's mistake.

They are compiled in a process of their own, `python -m loraplex.server.text.guide`, because a grammar can be made to
overflow the compiler's stack, and native code that crashes takes its process down.
"""

from __future__ import annotations

import asyncio
import hashlib
import sys
from collections import OrderedDict

import msgspec

from loraplex.server.engine.messages import Guide
from loraplex.server.errors import InvalidRequest

LONGEST = 64 * 1024
"""Characters of a guide."""
TIMEOUT = 5.0
"""Seconds that compiling one may take."""
REASON = 300
"""Characters of the compiler's reason that a client gets."""
REMEMBERED = 1024
AT_ONCE = 2
"""Processes: a flood of guides takes no more of the machine."""


class GuideChecker:
    """Remembers the guides that passed: clients send the same few again and again."""

    def __init__(self) -> None:
        self._good: OrderedDict[bytes, None] = OrderedDict()
        """Digests: so many of the longest guides would take hundreds of megabytes."""
        self._turns = asyncio.Semaphore(AT_ONCE)

    async def check(self, guide: Guide, param: str) -> None:
        """Compile a guide. Raises InvalidRequest with llguidance's own reason."""
        if len(guide.text) > LONGEST:
            raise InvalidRequest(f"{param} has more than {LONGEST} characters", param=param)
        encoded = msgspec.msgpack.encode(guide)
        digest = hashlib.sha256(encoded).digest()
        if digest in self._good:
            self._good.move_to_end(digest)
            return
        async with self._turns:
            reason = await _compile(encoded)
        if reason:
            raise InvalidRequest(f"{param} cannot be followed: {reason[:REASON]}", param=param)
        self._good[digest] = None
        if len(self._good) > REMEMBERED:
            self._good.popitem(last=False)


async def _compile(encoded: bytes) -> str:
    """Why a process of its own cannot compile a guide in msgpack; empty where it can."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "loraplex.server.text.guide"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        start_new_session=True,  # a terminal's Ctrl-C is for the server, which lets requests finish
    )
    try:
        async with asyncio.timeout(TIMEOUT):
            reason, _ = await process.communicate(encoded)
    except TimeoutError:
        return "it takes too long to compile"
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode and not reason:
        return "it is nested too deeply to compile"
    return reason.decode()


def _reason(guide: Guide) -> str:
    """Why a guide cannot be compiled; empty where it can."""
    # Only the process that compiles needs llguidance, not the API process that imports this module.
    from llguidance import LLMatcher

    from loraplex.server.engine.grammar import grammar

    try:
        return str(LLMatcher.validate_grammar(grammar(guide)))
    except ValueError as error:
        return str(error)


if __name__ == "__main__":
    sys.stdout.write(_reason(msgspec.msgpack.decode(sys.stdin.buffer.read(), type=Guide)))
