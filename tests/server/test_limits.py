"""Rates of keys: token buckets, and what a client over its rate is told."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from loraplex.server.errors import RateLimited
from loraplex.server.keys import Key, digest, entry, new_key
from loraplex.server.limits import Rate, duration
from tests.server.conftest import TinyBundle
from tests.server.process import ServerProcess, serving

FEW, SMALL, FREE = (new_key() for _ in range(3))


class Time:
    """A clock that stands until it is moved."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_bucket_refills_steadily_and_holds_a_minute() -> None:
    time = Time()
    rate = Rate(6, None, time)
    for _ in range(6):
        rate.take_request()
    with pytest.raises(RateLimited, match=r"6 requests a minute and has 0 left.*Try again in 10s") as refusal:
        rate.take_request()
    assert refusal.value.retry_after == 10
    time.now = 10
    rate.take_request()
    with pytest.raises(RateLimited):
        rate.take_request()
    time.now = 1000
    for _ in range(6):
        rate.take_request()
    with pytest.raises(RateLimited):
        rate.take_request()


def test_a_long_answer_leaves_a_debt() -> None:
    time = Time()
    rate = Rate(None, 60, time)
    rate.check_tokens(50)
    rate.spend_tokens(50)
    rate.spend_tokens(40)
    with pytest.raises(RateLimited) as refusal:
        rate.check_tokens(1)
    assert refusal.value.retry_after == 31
    assert rate.headers()["x-ratelimit-remaining-tokens"] == "0"
    assert rate.headers()["x-ratelimit-reset-tokens"] == "1m30s"
    time.now = 31
    rate.check_tokens(1)


def test_a_prompt_over_the_whole_rate_is_not_worth_another_try() -> None:
    with pytest.raises(RateLimited) as refusal:
        Rate(None, 60).check_tokens(61)
    assert refusal.value.permanent
    assert refusal.value.retry_after is None


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0ms"), (0.0201, "21ms"), (1, "1s"), (1.5, "1.5s"), (60, "1m0s"), (360.25, "6m0.25s")]
)
def test_durations_are_written_as_openai_does(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.fixture(scope="module")
def server(tiny: TinyBundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("limits")
    keys = [
        Key("few", digest(FEW), requests_per_minute=3, service_class="free"),
        Key("small", digest(SMALL), tokens_per_minute=40),
        Key("unlimited", digest(FREE)),
    ]
    (folder / "keys.toml").write_text("\n".join(map(entry, keys)))
    with serving(tiny.folder, folder / "log", "--keys", str(folder / "keys.toml")) as found:
        yield found


def ask(server: ServerProcess, key: str, prompt: int = 1, max_tokens: int = 1) -> dict[str, str]:
    """Headers of an answer."""
    client = server.client.with_options(api_key=key).completions.with_raw_response
    return dict(client.create(model="small", prompt=[10] * prompt, max_tokens=max_tokens, temperature=0).headers)


def test_requests_a_minute_are_counted_by_key(server: ServerProcess) -> None:
    left = [ask(server, FEW)["x-ratelimit-remaining-requests"] for _ in range(3)]
    assert left == ["2", "1", "0"]
    with pytest.raises(openai.RateLimitError) as refusal:
        ask(server, FEW)
    headers = refusal.value.response.headers
    assert refusal.value.code == "rate_limit_exceeded"
    assert 1 <= int(headers["retry-after"]) <= 20
    assert headers["x-ratelimit-limit-requests"] == "3"
    assert headers["x-ratelimit-reset-requests"].endswith("s")
    assert not any(name.startswith("x-ratelimit") for name in ask(server, FREE))
    server.client.with_options(api_key=FEW).models.list()  # reading costs nothing
    assert server.metric("loraplex_requests_total", key_class="free") == 3
    assert server.metric("loraplex_requests_total", key_class="default") >= 1


def test_tokens_a_minute_count_prompt_and_answer(server: ServerProcess) -> None:
    assert ask(server, SMALL, prompt=10, max_tokens=5)["x-ratelimit-limit-tokens"] == "40"
    client = server.client.with_options(api_key=SMALL)
    pieces = list(client.completions.create(model="small", prompt=[10] * 5, max_tokens=30, stream=True, temperature=0))
    assert pieces[-1].choices[0].finish_reason == "length"
    with pytest.raises(openai.RateLimitError, match="tokens a minute") as refusal:
        ask(server, SMALL, prompt=5)
    assert refusal.value.response.headers["x-ratelimit-remaining-tokens"] == "0"
    assert int(refusal.value.response.headers["retry-after"]) >= 5
    with pytest.raises(openai.RateLimitError) as too_long:
        ask(server, SMALL, prompt=41)
    assert too_long.value.response.headers["x-should-retry"] == "false"
    assert "retry-after" not in too_long.value.response.headers


def test_a_changed_rate_counts_from_then_on(tiny: TinyBundle, tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    path.write_text(entry(Key("one", digest(FEW), requests_per_minute=1)))
    with serving(tiny.folder, tmp_path / "log", "--keys", str(path)) as server:
        ask(server, FEW)
        with pytest.raises(openai.RateLimitError):
            ask(server, FEW)
        path.write_text(entry(Key("one", digest(FEW), requests_per_minute=100)))
        assert ask(server, FEW)["x-ratelimit-remaining-requests"] == "99"


def test_the_command_writes_rates(tmp_path: Path, tiny: TinyBundle) -> None:
    arguments = ["key", "customer", "--requests-per-minute", "1", "--tokens-per-minute", "1000"]
    output = subprocess.run(
        [sys.executable, "-m", "loraplex.server", *arguments], capture_output=True, text=True, check=True, timeout=60
    ).stdout
    made, _, lines = output.split("\n\n")
    path = tmp_path / "keys.toml"
    path.write_text(lines)
    with serving(tiny.folder, tmp_path / "log", "--keys", str(path)) as server:
        headers = ask(server, made)
        assert headers["x-ratelimit-remaining-requests"] == "0"
        assert headers["x-ratelimit-limit-tokens"] == "1000"
