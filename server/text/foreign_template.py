"""An adapter's own chat template. It comes from outside, so it is rendered in a process of its own, where it takes
neither the server's memory nor its time: `python -m loraplex.server.text.foreign_template`.

Requests go down the process's standard input and answers come up its standard output, JSON with its length in front.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import Mapping, Sequence
from functools import lru_cache
from struct import Struct as Layout
from types import MappingProxyType
from typing import Any

from loraplex.server.errors import BundleInvalid, InvalidRequest
from loraplex.server.text.template import ChatTemplate
from loraplex.server.text.tool_format import format_of
from loraplex.server.text.tool_prompt import Message

HEADER = Layout(">I")
SECONDS = 2.0
"""Of processor time that one rendering may take; a conversation of 4 MB takes a template of a real model a tenth of
it."""
PATIENCE = SECONDS if sys.platform == "win32" else 30.0
"""Seconds that one may take on a machine that has other things to do. Windows does not limit processor time."""
MEMORY = 2**30
"""Bytes of address space of the process."""
LONGEST_SOURCE = 2**18
"""Characters of a template; the longest of known models have a tenth of it."""
LONGEST_PROMPT = 2**24
"""Characters."""
COMPILED = 64
"""Templates that the process remembers."""
OVERTIME = None if sys.platform == "win32" else -signal.SIGPROF
"""The status of a process whose processor time was over."""


class TemplateProcess:
    """Renders one template after another; starts when it is first needed, and again after it had to be ended."""

    def __init__(self) -> None:
        self._process: asyncio.subprocess.Process | None = None
        self._turn = asyncio.Lock()

    async def open(self, source: str, special_tokens: Mapping[str, str]) -> ForeignTemplate:
        """A template that renders the plainest of conversations. Raises BundleInvalid."""
        if len(source) > LONGEST_SOURCE:
            raise BundleInvalid(f"the chat template has more than {LONGEST_SOURCE} characters")
        found = ForeignTemplate(self, source, special_tokens)
        try:
            await found.render([{"role": "user", "content": "Hello"}])
        except InvalidRequest as error:
            raise BundleInvalid(error.message) from None
        return found

    async def ask(self, question: bytes) -> tuple[str, str]:
        """What became of a rendering, "text" or "refused", and the text or the reason. Raises InvalidRequest."""
        async with self._turn:
            try:
                process = self._process
                if process is None or process.returncode is not None:  # somebody may have ended it meanwhile
                    process = await self._start()
                assert process.stdin is not None
                assert process.stdout is not None
                async with asyncio.timeout(PATIENCE):
                    process.stdin.write(HEADER.pack(len(question)) + question)
                    (length,) = HEADER.unpack(await process.stdout.readexactly(HEADER.size))
                    kind, said = json.loads(await process.stdout.readexactly(length))
                    return str(kind), str(said)
            except TimeoutError:
                await self._end()
                problem = f"the chat template took more than {PATIENCE:.0f} s for these messages"
            except (asyncio.IncompleteReadError, ConnectionError):
                if await self._end() == OVERTIME:
                    problem = f"the chat template took more than {SECONDS:.0f} s for these messages"
                else:
                    problem = "the chat template ended its process on these messages"
            except BaseException:  # cancelled: its answer must not be taken for that of the next question
                await self._end()
                raise
        raise InvalidRequest(problem, param="messages")

    async def close(self) -> None:
        await self._end()

    async def _start(self) -> asyncio.subprocess.Process:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "loraplex.server.text.foreign_template"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,  # a terminal's Ctrl-C is for the server
        )
        assert self._process.stdout is not None
        await self._process.stdout.readexactly(1)  # it is ready: its start does not count
        return self._process

    async def _end(self) -> int | None:
        """The status that the process ended with; None where there was none."""
        process, self._process = self._process, None
        if process is None:
            return None
        if process.returncode is None:
            process.kill()  # one that has ended already keeps its status
        return await process.wait()


class ForeignTemplate:
    """As `ChatTemplate`, to be awaited."""

    def __init__(self, process: TemplateProcess, source: str, special_tokens: Mapping[str, str]) -> None:
        self.tools = format_of(source)
        """How the model calls tools."""
        self._process = process
        self._source = source
        self._special_tokens = dict(special_tokens)
        # One at a time, so that a template that takes all the time there is holds up others for one turn only.
        self._turn = asyncio.Lock()

    async def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] = (),
        *,
        add_generation_prompt: bool = True,
        variables: Mapping[str, Any] = MappingProxyType({}),
    ) -> str:
        """See ChatTemplate.render. Raises InvalidRequest."""
        try:
            question = json.dumps(
                [
                    self._source,
                    self._special_tokens,
                    list(messages),
                    list(tools),
                    add_generation_prompt,
                    dict(variables),
                ]
            )
        except RecursionError:
            raise InvalidRequest("what the chat template is given is nested too deeply", param="messages") from None
        async with self._turn:
            kind, said = await self._process.ask(question.encode())
        if kind == "refused":
            raise InvalidRequest(said, param="messages")
        return said


_compiled = lru_cache(COMPILED)(lambda source, special_tokens: ChatTemplate(source, dict(special_tokens)))


def _answer(question: bytes) -> tuple[str, str]:
    try:
        source, special_tokens, messages, tools, add_generation_prompt, variables = json.loads(question)
        template = _compiled(source, tuple(sorted(special_tokens.items())))
        text = template.render(messages, tools, add_generation_prompt=add_generation_prompt, variables=variables)
        text.encode()  # half of a surrogate pair is a string to Python, and no text to a tokenizer
    except (BundleInvalid, InvalidRequest) as error:
        return "refused", error.message
    except MemoryError:
        return "refused", "the chat template takes more memory than it may"
    except Exception as error:  # whatever a template manages to raise
        return "refused", f"the chat template fails: {type(error).__name__}"
    if len(text) > LONGEST_PROMPT:
        return "refused", f"the chat template makes a prompt of more than {LONGEST_PROMPT} characters"
    return "text", text


def _limit(seconds: float) -> None:
    """End this process once it has taken so much more processor time; 0 is no limit."""
    if sys.platform != "win32":
        signal.setitimer(signal.ITIMER_PROF, seconds)


def main() -> None:
    if sys.platform != "win32":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        signal.signal(signal.SIGPROF, signal.SIG_DFL)  # whatever this process was started with
    inward, outward = sys.stdin.buffer, sys.stdout.buffer
    outward.write(b"\n")
    outward.flush()
    while len(header := inward.read(HEADER.size)) == HEADER.size:
        (length,) = HEADER.unpack(header)
        question = inward.read(length)
        _limit(SECONDS)
        answer = json.dumps(_answer(question)).encode()
        _limit(0)
        outward.write(HEADER.pack(len(answer)) + answer)
        outward.flush()


if __name__ == "__main__":
    main()
