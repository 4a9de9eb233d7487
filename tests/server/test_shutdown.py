"""A server that is told to stop."""

from __future__ import annotations

import signal
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import httpx2
import openai
import psutil
import pytest

from tests.server.calls import LONG, call, stream
from tests.server.conftest import DEMO, TinyBundle
from tests.server.process import PATIENCE, ServerProcess, serving, wait_until
from tests.server.test_conversion import converters, endless


def test_sigterm_lets_running_streams_finish(own_server: ServerProcess) -> None:
    answer = stream(own_server, n=32, ignore_eos=True)
    chunks = [next(answer)]
    own_server.process.send_signal(signal.SIGTERM)
    chunks += answer
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices[0].finish_reason] == ["length"] * 32
    assert own_server.process.wait(PATIENCE) == 0


@pytest.mark.parametrize("streaming", [True, False])
def test_past_the_drain_requests_end_with_an_error(tiny: TinyBundle, tmp_path: Path, streaming: bool) -> None:
    log = tmp_path / "log"
    with serving(tiny.folder, log, "--drain-timeout", "1", "--max-running", "1") as server:

        def ask() -> list[object]:
            answer = server.client.completions.create(
                model="large", prompt=[10], temperature=1, max_tokens=LONG, stream=streaming
            )
            return list(answer)

        with ThreadPoolExecutor() as pool:
            engine = server.engine()
            engine.suspend()
            running, waiting = pool.submit(ask), pool.submit(ask)
            server.wait_for("loraplex_requests_running", 1, adapter="large")
            server.wait_for("loraplex_requests_waiting", 1, adapter="large")
            server.process.send_signal(signal.SIGTERM)
            for answer in (running, waiting):
                with pytest.raises(openai.APIError, match="shutting down") as error:
                    answer.result(PATIENCE)
                if not streaming:
                    assert isinstance(error.value, openai.InternalServerError)
                    assert error.value.status_code == 503
        with suppress(psutil.NoSuchProcess):  # the server does not wait for it for long
            engine.resume()
        assert server.process.wait(PATIENCE) == 0
    assert "Traceback" not in log.read_text()


def test_past_the_drain_an_adapter_is_not_loaded(tiny: TinyBundle, tmp_path: Path) -> None:
    log, state = tmp_path / "log", tmp_path / "state"
    flags = ("--dev", "--adapter-dir", str(tmp_path), "--state-dir", str(state), "--drain-timeout", "1")
    with serving(tiny.folder, log, *flags) as server, ThreadPoolExecutor() as pool:
        endless(tiny, tmp_path / "given" / "peft")
        answer = pool.submit(call, server, "PUT", "/v1/adapters/new", {"path": "given/peft"})
        wait_until(lambda: converters(server))
        (converter,) = converters(server)
        converter.suspend()
        server.process.send_signal(signal.SIGTERM)
        status, body = answer.result(PATIENCE)
        assert (status, body["error"]["code"]) == (503, "not_ready")
        assert server.process.wait(PATIENCE) == 0
        assert psutil.wait_procs([converter], timeout=PATIENCE)[1] == []
    assert [each.name for each in state.iterdir()] == ["adapters.json"]
    assert "Traceback" not in log.read_text()


def test_a_second_signal_stops_at_once(tmp_path: Path) -> None:
    with serving(DEMO, tmp_path / "log", "--drain-timeout", "600") as server:
        answer = server.client.completions.create(
            model="travel", prompt=[5], n=128, max_tokens=2000, stream=True, extra_body={"ignore_eos": True}
        )
        next(answer)
        engine = server.engine()
        server.process.send_signal(signal.SIGTERM)
        server.wait_for_line("another signal stops at once")
        assert server.process.poll() is None
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(PATIENCE) == 0
        assert psutil.wait_procs([engine], timeout=PATIENCE)[1] == []
        ended = 0
        with suppress(openai.APIError, httpx2.HTTPError):
            for chunk in answer:
                ended += chunk.choices[0].finish_reason == "length"
        assert ended < 128, "it waited for all"
    assert "Traceback" not in (tmp_path / "log").read_text()
