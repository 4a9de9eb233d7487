"""What a reader has to know of a run besides its figures."""

from __future__ import annotations

import re
from typing import Any

from loraplex.bench.results.result import Run


def provenance(run: Run) -> dict[str, str]:
    """Date, command, model, server, machine, versions and metadata, as far as they are known."""
    asked = run.configuration
    found: dict[str, Any] = {
        "date": date(asked.date),
        "command": asked.command,
        "model": asked.model_id,
        "server": asked.url,
        **asked.server,
        **asked.machine,
        **run.metadata,
    }
    return {key: str(value) for key, value in found.items() if value}


def date(written: str) -> str:
    """vLLM's %Y%m%d-%H%M%S in a form that reads."""
    match = re.fullmatch(r"(\d{4})(\d\d)(\d\d)-(\d\d)(\d\d)\d\d", written)
    return f"{match[1]}-{match[2]}-{match[3]} {match[4]}:{match[5]}" if match else written
