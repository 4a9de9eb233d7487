"""An adapter on the Hugging Face hub -> a local folder, PEFT's files or our own and nothing else.

`python -m loraplex.server.hub_adapter OWNER/NAME[@REVISION] FOLDER BYTES` does so in a process of its own, and ends
when its standard input does (`hub_downloads`).
"""

from __future__ import annotations

import errno
import os
import re
import sys
import threading
from pathlib import Path

import msgspec
from msgspec import Struct

from loraplex.server.bundle import ADAPTER_MANIFEST
from loraplex.server.conversion import PEFT_CONFIG, PEFT_WEIGHTS
from loraplex.server.errors import (
    AdapterInvalid,
    HubFailed,
    LoraplexError,
    ModelNotFound,
    StorageFailed,
)
from loraplex.server.hub import ID, explain, is_absent

FILES = [ADAPTER_MANIFEST, "*.onnx_adapter", "*.jinja", PEFT_CONFIG, PEFT_WEIGHTS]
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
NEEDED = {ADAPTER_MANIFEST, PEFT_CONFIG}
"""One of them says what it is."""


class Fetched(Struct, frozen=True):
    """What the process says at its end."""

    source: str = ""
    """The adapter's name with the commit it has."""
    code: str | None = None
    """Of the error that ended it."""
    message: str = ""
    param: str | None = None


def is_hub_id(given: str) -> re.Match[str] | None:
    """OWNER/NAME[@REVISION]."""
    return ID.fullmatch(given)


def fetch_adapter(given: str, target: Path, limit: int) -> str:
    """Fetch the adapter OWNER/NAME[@REVISION] into the new folder `target`; its name with the commit it has.

    At most `limit` bytes, which are known before any of them is fetched. Blocks for as long as it takes. Raises
    ModelNotFound, AdapterInvalid, StorageFailed and HubFailed.
    """
    from huggingface_hub import HfApi, snapshot_download

    match = is_hub_id(given)
    assert match is not None
    repository = match["repository"]
    try:
        # Asked first, because a dry run gives the same reason for everything.
        commit = HfApi().model_info(repository, revision=match["revision"]).sha
        found = snapshot_download(repository, revision=commit, allow_patterns=FILES, local_dir=target, dry_run=True)
        assert isinstance(found, list)
        if not NEEDED & {each.filename for each in found}:
            raise AdapterInvalid(f"{given} on the hub is not an adapter: it has no {' and no '.join(sorted(NEEDED))}")
        if (size := sum(limit if each.file_size is None else each.file_size for each in found)) > limit:
            raise AdapterInvalid(f"{given} on the hub has {size} bytes, this server takes {limit} at most")
        snapshot_download(repository, revision=commit, allow_patterns=FILES, local_dir=target)
    except AdapterInvalid:
        raise
    # Downloads run through several libraries, each with network errors of its own.
    except Exception as error:
        if isinstance(error, OSError) and error.errno in FULL:
            raise StorageFailed(f"{given} could not be stored: {error.strerror}") from None
        reason = explain(error, match["revision"])
        if is_absent(error):
            raise ModelNotFound(f"{given} is not on the hub: {reason}", param="hub") from None
        raise HubFailed(f"{given} cannot be had from the hub: {reason}") from None
    return f"{repository}@{commit}"


def main(given: str, target: str, limit: str) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        said = Fetched(fetch_adapter(given, Path(target), int(limit)))
    except LoraplexError as error:
        said = Fetched(code=error.code, message=error.message, param=error.param)
    sys.stdout.buffer.write(msgspec.json.encode(said))


def _end_with_parent() -> None:
    while os.read(0, 1024):
        pass
    os._exit(1)


if __name__ == "__main__":
    main(*sys.argv[1:])
