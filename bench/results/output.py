"""Where a run is written to."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from loraplex.bench.errors import OptionsInvalid
from loraplex.bench.load.options import Report
from loraplex.bench.results import csv_file, result_file
from loraplex.bench.results.configuration import Configuration
from loraplex.bench.results.result import Run

LONGEST_LABEL = 50
"""Characters of a label in a file's name, which has at most 255 bytes, the rate, the model and the date among them."""


def check(report: Report) -> None:
    """Make the folders of every file that the flags ask for, before a run whose figures would be lost.

    Raises OptionsInvalid.
    """
    files = [report.csv, report.html, report.plots and report.plots / "latency.png"]
    if report.save_result or report.append_result:
        files.append(report.result_dir / (report.result_filename or "run.json"))
    prepare(*filter(None, files))


def prepare(*files: Path) -> None:
    """Make the folders of files that will be written. Raises OptionsInvalid where a file cannot be."""
    for file in files:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OptionsInvalid(f"{file} cannot be written: {file.parent}: {error.strerror}") from None
        if file.is_dir():
            raise OptionsInvalid(f"{file} cannot be written: it is a folder")
        if not os.access(file if file.exists() else file.parent, os.W_OK):
            raise OptionsInvalid(f"{file} cannot be written: permission denied")


def save(run: Run, report: Report) -> list[Path]:
    """Write every file that the flags ask for; returns them. Raises OSError."""
    written = []
    if report.save_result or report.append_result:
        path = report.result_dir / (report.result_filename or file_name(run.configuration))
        result_file.write(run, path, detailed=report.save_detailed, append=report.append_result)
        written.append(path)
    if report.csv is not None:
        csv_file.write(run, report.csv)
        written.append(report.csv)
    return [*written, *write_plots([run], report)]


def write_plots(runs: Sequence[Run], report: Report) -> list[Path]:
    """The page and the plots of all runs, where they are asked for."""
    if report.html is None and report.plots is None:
        return []
    from loraplex.bench.results.report import write_report  # matplotlib takes a second

    write_report(runs, html=report.html, plots=report.plots)
    return [path for path in (report.html, report.plots) if path is not None]


def file_name(asked: Configuration) -> str:
    """As vLLM names it."""
    label, model = file_label(asked.label or asked.backend), asked.model_id.split("/")[-1]
    places = f"-concurrency{asked.max_concurrency}" if asked.max_concurrency is not None else ""
    if asked.ramp_up_strategy is not None:
        rate = f"ramp-up-{asked.ramp_up_strategy}-{asked.ramp_up_start_rps}qps-{asked.ramp_up_end_rps}qps"
    else:
        rate = f"{asked.request_rate}qps"
    return f"{label}-{rate}{places}-{model}-{asked.date}.json"


def file_label(label: str) -> str:
    """A label as part of a file's name: without folders, and not too long."""
    return label.replace("/", "-")[:LONGEST_LABEL]


def command_line(*secrets: str | None) -> str:
    """How this process was called, without secrets."""
    line = shlex.join(["loraplex", *sys.argv[1:]])
    for secret in secrets:
        line = line.replace(secret, "***") if secret else line
    return line
