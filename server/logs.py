"""Log lines, for people or for machines: of the server's own doings, and one of each request.

No line has a prompt, an answer or a key in it. Lines that are written while a request is answered carry its id.
"""

from __future__ import annotations

import logging
import sys
import time
from asyncio import CancelledError
from datetime import UTC, datetime
from typing import Literal

import msgspec

from loraplex.server.record import RequestRecord, current

Format = Literal["console", "json"]

access = logging.getLogger("loraplex.access")

_QUIET = ("/health", "/ready", "/metrics")
"""Asked every few seconds by machines: logged at level debug."""
_encoder = msgspec.json.Encoder(enc_hook=str)


def configure(level: str, form: Format) -> None:
    """Write log lines to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JSONLines() if form == "json" else ConsoleLines())
    handler.addFilter(_unforeseen)
    logging.basicConfig(level=level.upper(), handlers=[handler])


class ConsoleLines(logging.Formatter):
    """A line for people."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        line = super().formatMessage(record)
        if (fields := getattr(record, "request", None)) is not None:
            shown = {name: value for name, value in fields.items() if name not in ("method", "path", "status")}
            return f"{line} {' '.join(f'{name}={_shown(value)}' for name, value in shown.items())}"
        request = current()
        return f"{line} request={request.id}" if request else line


class JSONLines(logging.Formatter):
    """One object a line; a request's fields stand beside time, level, logger and message."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        request = current()
        if (fields := getattr(record, "request", None)) is not None:
            line |= fields
        elif request:
            line["request"] = request.id
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return _encoder.encode(line).decode()


def log_request(record: RequestRecord) -> None:
    """The line of a request that ended."""
    level = logging.DEBUG if record.path in _QUIET else logging.INFO
    if not access.isEnabledFor(level):
        return
    fields: dict[str, object] = {
        "method": record.method,
        "path": record.path,
        "status": record.status,
        "request": record.id,
        "seconds": round(time.perf_counter() - record.arrived, 6),
    }
    if record.key:
        fields["key"] = record.key.name
    if record.code:
        fields["code"] = record.code
    if record.adapter:
        waited, first = record.queue_seconds(), record.first_token_seconds()
        fields |= {
            "adapter": record.adapter,
            "prompt_tokens": record.prompt_tokens,
            "generated_tokens": record.generated_tokens,
            "cached_tokens": record.cached_tokens,
            "queue_seconds": None if waited is None else round(waited, 6),
            "first_token_seconds": None if first is None else round(first, 6),
            "finish": ",".join(record.finishes()),
        }
    access.log(level, "%s %s %d", record.method, record.path, record.status, extra={"request": fields})


def _unforeseen(record: logging.LogRecord) -> bool:
    """A second signal ends requests where they stand, which uvicorn takes for an exception in each of them."""
    return not (record.name == "uvicorn.error" and record.exc_info and record.exc_info[0] is CancelledError)


def _shown(value: object) -> str:
    return "-" if value in (None, "") else str(value)
