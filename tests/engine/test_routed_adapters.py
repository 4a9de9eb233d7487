"""Adapters of the routed lane come, go and break while it runs."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from concurrent.futures import wait
from pathlib import Path

import pytest

from loraplex.server.engine.adapter_file import check_adapter
from loraplex.server.engine.messages import Submit
from tests.engine.lanes import GREEDY, Answer, Model, ask, run
from tests.engine.routed_lane import COUNT, PROMPTS, check, load, requests, routed


def test_adapters_come_while_sequences_run(llama: Model, cache: Path) -> None:
    lane = routed(llama, cache, "four")
    asked = requests((None, "four", "four"))
    for request in asked:
        lane.submit(request)
    answers = {request.sequence: Answer() for request in asked}
    while not any(answer.tokens for answer in answers.values()):
        for output in lane.step():
            answers[output.sequence].add(output)
    load(lane, llama, "nine", "some")
    late = requests(("nine", "some", "four", None), start=10)
    answers |= {request.sequence: Answer() for request in late}
    for request in late:
        lane.submit(request)
    while lane.busy:
        for output in lane.step():
            answers[output.sequence].add(output)
    check(llama, answers, [*asked, *late])
    assert lane.linked == {"four", "nine", "some"}


def test_more_adapters_than_room(llama: Model, cache: Path) -> None:
    lane = routed(llama, cache, max_linked=1, drain_seconds=0.0)
    asked = requests(("four", "nine", None, "some", "four", "nine", "some"))
    check(llama, run(lane, asked), asked)
    assert len(lane.linked) == 1


def test_cancel_and_unload(llama: Model, cache: Path) -> None:
    lane = routed(llama, cache)
    asked = requests()
    answers = run(lane, asked, cancels={1: 3, 2: 0})
    check(llama, answers, [asked[0], asked[3]])
    assert answers[1].finish is None
    assert answers[2].tokens == []
    lane.unload_adapter("nine")
    assert ask(lane, PROMPTS[0], "nine").error == "there is no adapter 'nine'"
    assert lane.linked == {"four", "some"}


def test_unloaded_while_it_is_waited_for(llama: Model, cache: Path) -> None:
    """Who asked in time is answered."""
    lane = routed(llama, cache, "four", max_linked=1)
    run(lane, requests(("four",)))
    load(lane, llama, "nine")
    asked = requests(("nine",))
    lane.submit(asked[0])
    lane.unload_adapter("nine")
    answers = {0: Answer()}
    while lane.busy:
        for output in lane.step():
            answers[0].add(output)
    check(llama, answers, asked)
    assert ask(lane, PROMPTS[0], "nine").error == "there is no adapter 'nine'"


def test_replaced_adapter(llama: Model, cache: Path) -> None:
    lane = routed(llama, cache, "four", "nine")
    run(lane, requests(("four",)))
    folder = llama.bundle.adapter("some")
    lane.load_adapter("four", folder, check_adapter(folder, llama.bundle.manifest.base))
    answer = ask(lane, PROMPTS[0], "four", COUNT)
    assert answer.tokens == llama.expected("some", PROMPTS[0], COUNT)


def test_two_adapters_of_one_name(llama: Model, cache: Path) -> None:
    """Whoever waits for the first is answered by the first, linked beside the second."""
    lane = routed(llama, cache, "four", max_linked=3)
    base = llama.bundle.manifest.base
    answers = {}
    for number, name in enumerate(("four", "nine")):
        folder = llama.bundle.adapter(name)
        lane.load_adapter("one", folder, check_adapter(folder, base))
        lane.submit(Submit(number, "one", list(PROMPTS[0]), COUNT, GREEDY))
        answers[number] = Answer()
    load(lane, llama, "some")
    lane.submit(Submit(2, "some", list(PROMPTS[0]), COUNT, GREEDY))
    answers[2] = Answer()
    while lane.busy:
        for output in lane.step():
            answers[output.sequence].add(output)
    expected = [llama.expected(name, PROMPTS[0], COUNT) for name in ("four", "nine", "some")]
    assert [answers[number].tokens for number in range(3)] == expected


@pytest.mark.parametrize("damage", [lambda _: b"damaged", lambda content: content.replace(b"model.", b"model\xff")])
def test_broken_adapter_fails_its_own_requests_only(
    llama: Model, cache: Path, tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    """Damaged after it was checked; the second one's names are no text."""
    lane = routed(llama, cache, "four")
    run(lane, requests(("four",)))
    folder = llama.bundle.adapter("nine")
    manifest = check_adapter(folder, llama.bundle.manifest.base)
    (tmp_path / manifest.file).write_bytes(damage((folder / manifest.file).read_bytes()))
    lane.load_adapter("broken", tmp_path, manifest)
    answers = run(lane, [*requests(("broken",), start=5), *requests((None, "four"))])
    assert "cannot be linked" in (answers[5].error or "")
    check(llama, answers, requests((None, "four")))


def test_a_file_that_an_unload_takes_away_fails_nobody_else(llama: Model, cache: Path, tmp_path: Path) -> None:
    """The thread that links may come to it late."""
    lane = routed(llama, cache, "four")
    source = llama.bundle.adapter("nine")
    folder = Path(shutil.copytree(source, tmp_path / "gone"))
    lane.load_adapter("gone", folder, check_adapter(folder, llama.bundle.manifest.base))
    load(lane, llama, "some")
    asked = requests(("some", "four", None))
    for request in asked:
        lane.submit(request)
    lane.unload_adapter("gone")
    shutil.rmtree(folder)
    answers = {request.sequence: Answer() for request in asked}
    while lane.busy:
        for output in lane.step():
            answers[output.sequence].add(output)
    check(llama, answers, asked)


def test_who_unloads_an_adapter_learns_what_still_reads_it(
    llama: Model, cache: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lane = routed(llama, cache, "four")
    folder = Path(shutil.copytree(llama.bundle.adapter("nine"), tmp_path / "going"))
    gate = threading.Event()
    lane._engines._linker.submit(gate.wait)  # a thread that is held up
    lane.load_adapter("going", folder, check_adapter(folder, llama.bundle.manifest.base))
    lane.step()
    reading = lane.unload_adapter("going")
    assert [each.done() for each in reading] == [False]
    gate.set()
    wait(reading)
    shutil.rmtree(folder)
    asked = requests(("four", None))
    check(llama, run(lane, asked), asked)
    assert not caplog.records
    assert lane.unload_adapter("four") == lane.unload_adapter("unknown") == []
