"""Rates of a key: requests and tokens a minute, as token buckets (https://en.wikipedia.org/wiki/Token_bucket).

A bucket holds what a minute allows and refills steadily. Tokens count when they are known: those of the prompt before
it is taken on, those of the answer as they come. So a long answer can leave a debt, which later requests wait for.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from loraplex.server.errors import RateLimited

MINUTE = 60.0


class Bucket:
    """`limit` units a minute."""

    def __init__(self, limit: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.limit = limit
        self._clock = clock
        self._held = float(limit)
        self._at = clock()

    def held(self) -> float:
        """Units there are now; below zero in debt."""
        now = self._clock()
        self._held = min(self.limit, self._held + (now - self._at) * self.limit / MINUTE)
        self._at = now
        return self._held

    def spend(self, units: int) -> None:
        self._held = self.held() - units

    def seconds_to(self, units: float) -> float:
        """Until there are so many units, which may not be more than the limit."""
        return max(0.0, (units - self.held()) * MINUTE / self.limit)


class Rate:
    """What one key may do in a minute; None is no limit."""

    def __init__(self, requests: int | None, tokens: int | None, clock: Callable[[], float] = time.monotonic) -> None:
        self.requests = Bucket(requests, clock) if requests else None
        self.tokens = Bucket(tokens, clock) if tokens else None

    def matches(self, requests: int | None, tokens: int | None) -> bool:
        """Whether these are its limits."""
        return [bucket and bucket.limit for bucket in (self.requests, self.tokens)] == [requests, tokens]

    def take_request(self) -> None:
        """Count a request. Raises RateLimited."""
        if self.requests:
            self._check(self.requests, 1, "requests")
            self.requests.spend(1)

    def check_tokens(self, tokens: int) -> None:
        """Whether a prompt of so many tokens may come now. Raises RateLimited."""
        if self.tokens:
            self._check(self.tokens, tokens, "tokens")

    def spend_tokens(self, tokens: int) -> None:
        if self.tokens:
            self.tokens.spend(tokens)

    def headers(self) -> dict[str, str]:
        """OpenAI's: https://platform.openai.com/docs/guides/rate-limits#rate-limits-in-headers."""
        found = {}
        for name, bucket in (("requests", self.requests), ("tokens", self.tokens)):
            if bucket:
                found[f"x-ratelimit-limit-{name}"] = str(bucket.limit)
                found[f"x-ratelimit-remaining-{name}"] = str(max(0, math.floor(bucket.held())))
                found[f"x-ratelimit-reset-{name}"] = duration(bucket.seconds_to(bucket.limit))
        return found

    def _check(self, bucket: Bucket, units: int, what: str) -> None:
        if units > bucket.limit:
            raise RateLimited(
                f"This request has {units} {what}, your key may use {bucket.limit} a minute: shorten it", permanent=True
            )
        if bucket.held() < units:
            left = max(0, math.floor(bucket.held()))
            raise RateLimited(
                f"Your key may use {bucket.limit} {what} a minute and has {left} left; this request takes {units}. "
                f"Try again in {duration(bucket.seconds_to(units))}",
                retry_after=max(1, math.ceil(bucket.seconds_to(units))),
            )


def duration(seconds: float) -> str:
    """As Go prints durations, and OpenAI with it: 6m0s, 1.5s, 20ms."""
    milliseconds = math.ceil(seconds * 1000)
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, rest = divmod(milliseconds, 60_000)
    return (f"{minutes}m" if minutes else "") + f"{rest / 1000:g}s"
