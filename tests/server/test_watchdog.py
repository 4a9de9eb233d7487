"""An engine that hangs: it does not die, and answers nothing."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path

import openai
import psutil
import pytest

from tests.server.calls import call
from tests.server.conftest import DEMO, TinyBundle, scripted
from tests.server.process import PATIENCE, ServerProcess, serving, started, wait_until
from tests.server.test_connections import connect

SERVER = """
import sys
from pathlib import Path
from loraplex.server import run
from loraplex.server.bundle import Bundle
from loraplex.server.logs import configure
from loraplex.server.settings import Settings

bundle, engine, timeout, first = sys.argv[1:]
configure("info", "console")
exec(first)
settings = Settings(port=0, engine_timeout=float(timeout))
run.serve(Bundle.open(Path(bundle)), settings, engine_command=[sys.executable, "-c", engine])
"""

STUCK_STEP = """
import time
from loraplex.bench.scripted.engine import Pace, ScriptedLane
from loraplex.server.engine.process import main

class Lane(ScriptedLane):
    def step(self):
        if any(row.max_tokens == 13 for row in self._rows.values()):
            time.sleep(3600)
        return super().step()

main(lambda start: (Lane([], Pace(), None), 4))
"""
"""Goes on but for a request for 13 tokens, with which a step never ends."""

OTHER_START = """
import time
from pathlib import Path
from loraplex.bench.scripted.engine import Pace, ScriptedLane
from loraplex.server.engine.process import main

def open_lane(start):
    starts = Path({starts!r})
    starts.write_text(starts.read_text() + "x" if starts.exists() else "x")
    if starts.read_text() {which}:
        {what}
    return ScriptedLane([], Pace(), None), 4

main(open_lane)
"""
"""Those that are meant do something else than to load their base."""


def behaving(engine: str, log: Path, *, timeout: float, first: str = "") -> AbstractContextManager[ServerProcess]:
    """The demo's server in front of an engine of this source; `first` is code that the server begins with."""
    return started([sys.executable, "-c", SERVER, str(DEMO), engine, str(timeout), first], log)


def gated(folder: Path) -> tuple[str, Path]:
    """The source of an engine that, from its second start on, loads its base once there is a file, and that file."""
    gate = folder / "gate"
    what = f"while not Path({str(gate)!r}).exists(): time.sleep(0.02)"
    return OTHER_START.format(starts=str(folder / "starts"), which='> "x"', what=what), gate


@pytest.fixture
def server(tiny: TinyBundle, tmp_path: Path) -> Iterator[ServerProcess]:
    """Its engine gets three seconds: a busy machine may leave one that works without a processor for a while."""
    with serving(tiny.folder, tmp_path / "log", "--engine-timeout", "3") as found:
        yield found
    assert "Traceback" not in (tmp_path / "log").read_text()


def ask(server: ServerProcess) -> str:
    return server.client.completions.create(model="large", prompt=[10], temperature=0).choices[0].text


def long_stream(server: ServerProcess) -> openai.Stream[openai.types.Completion]:
    """Seconds of work, so that it still runs when something happens to it, however late that comes."""
    return server.client.completions.create(
        model="large",
        prompt=[10, 20],
        temperature=1,
        seed=1,
        max_tokens=250,
        stream=True,
        n=128,
        extra_body={"ignore_eos": True},
    )


def first_choice(answer: openai.Stream[openai.types.Completion]) -> str:
    """The text of the first choice; the others are left."""
    text = ""
    for chunk in answer:
        (choice,) = chunk.choices
        if choice.index == 0:
            text += choice.text
            if choice.finish_reason:
                break
    answer.close()
    return text


def restarts(server: ServerProcess) -> float:
    return server.metric("loraplex_engine_restarts_total")


def test_an_engine_that_hangs_is_replaced(server: ServerProcess) -> None:
    expected = ask(server)
    engine = server.engine()
    answer = long_stream(server)
    next(answer)
    engine.suspend()
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(ask, server)
        with pytest.raises(openai.APIError, match="the engine process hung and was ended while it worked on this"):
            list(answer)
        assert waiting.result(PATIENCE) == expected, "what had not begun is answered by the next engine"
    assert psutil.wait_procs([engine], timeout=PATIENCE)[1] == []
    assert server.engine().pid != engine.pid
    assert server.get("/health")[0] == 200
    assert restarts(server) == 1
    assert "(--engine-timeout): it is killed" in server.log.read_text()


def test_health_says_that_a_hanging_engine_is_started_again(tmp_path: Path) -> None:
    engine, gate = gated(tmp_path)
    with behaving(engine, tmp_path / "log", timeout=2) as server, ThreadPoolExecutor() as pool:
        assert server.get("/ready") == (200, {"ready": True, "engine": "ready"})
        psutil.Process(server_child(server)).suspend()
        answer = pool.submit(server.client.completions.create, model="travel", prompt=[5], max_tokens=3)

        def restarts_in_health() -> bool:
            assert server.get("/health")[0] == 200
            return server.get("/ready") == (503, {"ready": False, "engine": "restarting"})

        wait_until(restarts_in_health)
        gate.touch()
        assert answer.result(PATIENCE).choices
        assert server.get("/ready") == (200, {"ready": True, "engine": "ready"})


def test_a_hang_that_nobody_waits_for_any_more_ends_too(server: ServerProcess) -> None:
    engine = server.engine()
    engine.suspend()
    with connect(server) as leaving:
        body = b'{"model": "large", "prompt": [10]}'
        leaving.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
        server.wait_for("loraplex_requests_running", 1)
        time.sleep(1)
        for _ in range(2):  # whatever it was to do in the meantime it has done before it answers the second
            server.get("/ready")
        assert restarts(server) == 0
    server.wait_for("loraplex_engine_restarts_total", 1)
    assert server.engine().pid != engine.pid


def test_a_load_of_an_adapter_does_not_wait_for_ever(tiny: TinyBundle, tmp_path: Path) -> None:
    flags = ("--engine-timeout", "2", "--dev", "--adapter-dir", str(tiny.folder / "adapters"))
    with serving(tiny.folder, tmp_path / "log", *flags) as server:
        server.engine().suspend()
        status, body = call(server, "PUT", "/v1/adapters/new", {"path": "small"})
        assert (status, body["error"]["code"]) == (500, "engine_failed")
        server.wait_for("loraplex_engine_restarts_total", 1)
        assert call(server, "PUT", "/v1/adapters/new", {"path": "small"})[0] == 201


def test_an_idle_engine_is_left_alone(server: ServerProcess) -> None:
    engine = server.engine()
    engine.suspend()
    time.sleep(5)
    engine.resume()
    assert ask(server)
    assert restarts(server) == 0
    assert server.engine().pid == engine.pid


def test_a_server_that_was_stopped_as_a_whole_goes_on(server: ServerProcess) -> None:
    expected = first_choice(long_stream(server))
    engine = server.engine()
    answer = long_stream(server)
    first = next(answer)
    assert first.choices[0].index == 0
    server.process.send_signal(signal.SIGSTOP)
    engine.suspend()
    time.sleep(5)
    server.process.send_signal(signal.SIGCONT)
    time.sleep(0.3)  # the server is ahead of it
    engine.resume()
    assert first.choices[0].text + first_choice(answer) == expected
    assert restarts(server) == 0


def test_without_a_limit_a_hang_lasts(tiny: TinyBundle, tmp_path: Path) -> None:
    with serving(tiny.folder, tmp_path / "log", "--engine-timeout", "0") as server:
        engine = server.engine()
        answer = long_stream(server)
        next(answer)
        engine.suspend()
        time.sleep(1.5)
        engine.resume()
        assert first_choice(answer)
        assert restarts(server) == 0


@pytest.mark.slow
def test_a_slow_engine_is_waited_for(tmp_path: Path) -> None:
    """Four seconds from one token to the next, in steps of which each is short: as a long prompt in slices."""
    with scripted(tmp_path / "log", "--seconds 4", "--engine-timeout", "3") as server:
        answer = server.client.completions.create(model="travel", prompt=[5], max_tokens=2, stream=True)
        assert list(answer)[-1].choices[0].finish_reason == "length"
        assert restarts(server) == 0


@pytest.mark.slow
def test_a_request_that_every_engine_hangs_with(tmp_path: Path) -> None:
    with behaving(STUCK_STEP, tmp_path / "log", timeout=1.2) as server:
        with pytest.raises(openai.InternalServerError, match="hung and was ended"):
            server.client.completions.create(model="travel", prompt=[5], max_tokens=13)
        server.wait_for("loraplex_engine_restarts_total", 2)
        assert server.client.completions.create(model="travel", prompt=[5], max_tokens=3).choices
        # Where the step was stuck, as each of the two engines wrote it.
        assert server.log.read_text().count(' in step\n  File "') == 2


@pytest.mark.slow
def test_an_engine_that_hangs_while_it_starts_again(tmp_path: Path) -> None:
    engine = OTHER_START.format(starts=str(tmp_path / "starts"), which='== "xx"', what="time.sleep(3600)")
    with behaving(engine, tmp_path / "log", timeout=1) as server:
        os.kill(server_child(server), signal.SIGKILL)
        assert server.client.completions.create(model="travel", prompt=[5], max_tokens=3).choices
        assert (tmp_path / "starts").read_text().startswith("xxx")
        assert "could not be started again: it has not loaded the base within" in server.log.read_text()


@pytest.mark.slow
def test_an_engine_that_cannot_be_started_again_is_given_up(tmp_path: Path) -> None:
    engine = OTHER_START.format(starts=str(tmp_path / "starts"), which='> "x"', what="raise SystemExit(3)")
    with behaving(engine, tmp_path / "log", timeout=5) as server:
        os.kill(server_child(server), signal.SIGKILL)
        with pytest.raises(openai.InternalServerError) as refusal:
            server.client.completions.create(model="travel", prompt=[5], max_tokens=3)
        assert refusal.value.status_code in (500, 503)
        assert server.get("/health")[0] == 503
        assert len((tmp_path / "starts").read_text()) == 6
        assert "could not be started again in 5 tries" in server.log.read_text()


def server_child(server: ServerProcess) -> int:
    """The engine, whose command is a test's own."""
    (child,) = psutil.Process(server.process.pid).children()
    return child.pid
