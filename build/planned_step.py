"""One step of a plan, and the digests that tell whether it has to run again."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import msgspec

from loraplex.build.fingerprint import fingerprint
from loraplex.build.olive_workflow import Workflow

RECORD = "record.json"
SPEC = "spec.json"
_BESIDE_WEIGHTS = ("*.json", "*.jinja", "*.model", "*.txt", "additional_chat_templates/*.jinja")
"""Files of a checkpoint that steps read besides its weights: tokenizer, chat templates, generation_config.json."""


@dataclass(frozen=True)
class Step:
    """One Olive workflow. Paths are absolute."""

    name: str
    folder: Path
    """Its workflow, log, record and output."""
    what: str
    """What it does, for people."""
    workflow: Workflow
    result: Path
    """What later steps read, once the step is finished."""
    files: tuple[str, ...]
    """Files in `result` without which it did not work, whatever Olive says."""
    spec: msgspec.Struct | None = None
    """Content of spec.json beside the workflow."""
    inputs: tuple[str, ...] = ()
    """Names of earlier steps and digests of data: with the workflow they decide the result."""


def digest_of_base(folder: Path) -> str:
    """SHA-256 of all of a checkpoint that steps read: its fingerprint, which is of config and weights, and the rest.

    Raises CheckpointUnsupported as `fingerprint` does.
    """
    found = hashlib.sha256(fingerprint(folder).encode())
    for file in sorted(file for pattern in _BESIDE_WEIGHTS for file in folder.glob(pattern) if file.is_file()):
        found.update(f"\n{file.relative_to(folder)} {hashlib.sha256(file.read_bytes()).hexdigest()}".encode())
    return found.hexdigest()


def digest(step: Step, work: Path, known: dict[str, str]) -> str:
    """SHA-256 of all that decides a step's result; `known` has the digests of the base and of earlier steps by name."""
    spec = msgspec.to_builtins(step.spec) if step.spec is not None else None
    text = json.dumps([step.workflow, spec], sort_keys=True).replace(json.dumps(str(work))[1:-1], "WORK")
    parts = [text, *(known.get(each, each) for each in step.inputs)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
