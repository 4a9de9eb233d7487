"""Templates of adapters: the same prompts as in this process, and hostile ones that harm nobody."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from loraplex.server.errors import BundleInvalid, InvalidRequest
from loraplex.server.text import foreign_template
from loraplex.server.text.foreign_template import SECONDS, TemplateProcess
from loraplex.server.text.template import ChatTemplate
from tests.server.bytes_bundle import TEMPLATES
from tests.server.process import children

TALK = [{"role": "user", "content": "Hello «you»"}, {"role": "assistant", "content": "w\n"}]
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}]
GOOD = "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}"
LATER = "{% if messages|length > 1 %}%s{% endif %}fine"
"""Does its harm once it is loaded."""

HOSTILE = {
    "a product": "{{ 'a' * 10 ** 10 }}",
    "a power": "{{ 10 ** (messages|length * 10 ** 9) }}",  # a constant would be computed while it is compiled
    "a sum": "{% set n = namespace(x='ab') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}",
    "a width": "{{ '%2000000000d' % 1 }}",
    "a format": "{{ '{:2000000000}'.format(1) }}",
    "a method": "{{ 'a'.ljust(2 ** 33) }}",
    "a filter": "{{ 'a'|center(2 ** 33) }}",
    "a replacement": "{% set a = 'a' * 10 ** 6 %}{{ a.replace('a', a) }}",
    "a list": "{{ ([0] * 10 ** 10)|length }}",
    "a loop with output": "{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}",
    "a loop without": "{% for i in range(99999) %}{% for j in range(99999) %}{% set x = 1 %}{% endfor %}{% endfor %}",
    "lipsum": "{{ lipsum(n=10 ** 7) }}",
    "a recursion": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "the interpreter": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "a change of what it is given": "{{ messages.append(1) }}",
    "half of a character": r"{{ '\ud800' }}",
    "a long prompt": "{{ 'a' * (2 ** 24 + 1) }}",
}


@asynccontextmanager
async def running() -> AsyncIterator[TemplateProcess]:
    process = TemplateProcess()
    try:
        yield process
    finally:
        await process.close()
        assert children(os.getpid(), "loraplex.server.text.foreign_template") == []


@pytest.mark.parametrize("source", [GOOD, *TEMPLATES.values()], ids=["good", *TEMPLATES])
async def test_it_renders_as_in_this_process(source: str) -> None:
    tokens = {"bos_token": "<s>"}
    async with running() as process:
        foreign, ours = await process.open(source, tokens), ChatTemplate(source, tokens)
        assert foreign.tools == ours.tools
        assert await foreign.render(TALK) == ours.render(TALK)
        assert await foreign.render(TALK, TOOLS) == ours.render(TALK, TOOLS)
        given = {"add_generation_prompt": False, "variables": {"thinking": True, "deep": [{"x": 2**80}]}}
        assert await foreign.render(TALK, **given) == ours.render(TALK, **given)  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize("name", HOSTILE)
async def test_a_hostile_template_is_refused_when_it_is_loaded_and_later(name: str) -> None:
    async with running() as process:
        good = await process.open(GOOD, {})
        sly = await process.open(LATER.replace("%s", HOSTILE[name]), {})
        with pytest.raises(BundleInvalid, match="chat template"):
            await process.open(HOSTILE[name], {})
        with pytest.raises(InvalidRequest, match="chat template") as refusal:
            await sly.render(TALK)
        assert refusal.value.param == "messages"
        assert len(refusal.value.message) < 500
        assert await good.render(TALK) == "Hello «you»w\n"


async def test_a_template_that_is_too_long_is_refused() -> None:
    async with running() as process:
        with pytest.raises(BundleInvalid, match="more than 262144 characters"):
            await process.open("a" * 2**18 + "a", {})


async def test_a_slow_template_holds_up_another_for_one_turn_only() -> None:
    async with running() as process:
        good = await process.open(GOOD, {})
        slow = await process.open(LATER.replace("%s", HOSTILE["a loop without"]), {})
        flood = [asyncio.create_task(slow.render(TALK)) for _ in range(5)]
        await asyncio.sleep(0)
        assert await good.render(TALK) == "Hello «you»w\n"
        assert sum(task.done() for task in flood) <= 1
        for task in flood:
            task.cancel()
        await asyncio.gather(*flood, return_exceptions=True)
        assert await good.render(TALK) == "Hello «you»w\n"


async def test_a_template_that_takes_all_the_time_there_is_is_told_so() -> None:
    async with running() as process:
        slow = await process.open(LATER.replace("%s", HOSTILE["a loop without"]), {})
        with pytest.raises(InvalidRequest, match=f"took more than {SECONDS:.0f} s for these messages"):
            await slow.render(TALK)


async def test_a_busy_machine_is_no_fault_of_the_template() -> None:
    """Here one whose processor has other things to do for longer than a template may take of it."""
    async with running() as process:
        good = await process.open(GOOD, {})
        (child,) = children(os.getpid(), "loraplex.server.text.foreign_template")
        child.suspend()
        rendering = asyncio.create_task(good.render(TALK))
        await asyncio.sleep(1.5 * SECONDS)
        assert not rendering.done()
        child.resume()
        assert await rendering == "Hello «you»w\n"
        assert child.is_running()


async def test_a_process_that_stands_still_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running() as process:
        good = await process.open(GOOD, {})
        (child,) = children(os.getpid(), "loraplex.server.text.foreign_template")
        child.suspend()
        with monkeypatch.context() as patch:
            patch.setattr(foreign_template, "PATIENCE", 0.5)
            with pytest.raises(InvalidRequest, match="took more than"):
                await good.render(TALK)
        assert not child.is_running()
        assert await good.render(TALK) == "Hello «you»w\n"


async def test_a_process_that_was_ended_meanwhile_is_started_again() -> None:
    async with running() as process:
        good = await process.open(GOOD, {})
        assert process._process
        process._process.kill()
        await process._process.wait()
        assert await good.render(TALK) == "Hello «you»w\n"


async def test_what_nests_too_deeply_is_refused() -> None:
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    async with running() as process:
        template = await process.open(GOOD, {})
        with pytest.raises(InvalidRequest, match="nested too deeply"):
            await template.render(TALK, variables={"deep": deep})
        assert await template.render(TALK) == "Hello «you»w\n"
