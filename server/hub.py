"""A bundle on the Hugging Face hub -> a local folder.

huggingface_hub's cache has every file as a link into a store of blobs. onnxruntime refuses weights whose link leads out
of the model's folder ("External data path escapes model directory"), and so do our own checks of adapters. So the files
of a snapshot get a second name, by hard links, which take no space. They lie in the cache's folder of the repository,
and go when it is deleted.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import tempfile
from pathlib import Path

from loraplex.server.bundle import MANIFEST
from loraplex.server.errors import BundleInvalid

logger = logging.getLogger("loraplex.hub")

FILES = [MANIFEST, "base/*", "adapters/*"]
"""All that is fetched of a repository."""

ID = re.compile(r"(?P<repository>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>\S+))?")
_UNPACKED = "loraplex"


def locate_bundle(given: str) -> Path:
    """The folder of a bundle: a local one as it is, or OWNER/NAME[@REVISION], fetched from the hub.

    A folder that exists wins over an id. What the cache has is not fetched again, and without network, or with
    HF_HUB_OFFLINE=1, the cache is all there is. Blocks for as long as it takes. Raises BundleInvalid.
    """
    match = ID.fullmatch(given)
    if match is None or Path(given).exists():
        return Path(given)
    snapshot = _fetch(given, match["repository"], match["revision"])
    if not (snapshot / MANIFEST).is_file():
        raise BundleInvalid(f"{given} on the hub is not a bundle: the repository has no {MANIFEST}")
    logger.info("%s: commit %s", given, snapshot.name)
    try:
        return _unpack(snapshot)
    except OSError as error:
        raise BundleInvalid(
            f"{given} was fetched but its cache cannot be written ({error}): download it into a folder of its own with "
            f"`hf download {match['repository']} --local-dir FOLDER`, and serve that"
        ) from None


def explain(error: Exception, revision: str | None) -> str:
    """Why huggingface_hub could not fetch a repository, in a line for people."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    match error:
        case GatedRepoError():
            return "it is gated, accept its terms and log in with `hf auth login`"
        case RepositoryNotFoundError():
            return "there is none of this name, or it is private and needs `hf auth login`"
        case RevisionNotFoundError():
            return f"it has no revision {revision}"
        case LocalEntryNotFoundError() | OfflineModeIsEnabled():
            return "the hub cannot be reached, and the cache does not have all of it"
        case HFValidationError():
            return "that is no name of a repository"
        case _:
            return (str(error).strip() or type(error).__name__).splitlines()[0]


def is_absent(error: Exception) -> bool:
    """Whether the hub has no such repository or revision, or none for us."""
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    return isinstance(error, RepositoryNotFoundError | RevisionNotFoundError | HFValidationError)


def _fetch(given: str, repository: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=FILES))
    # Downloads run through several libraries, each with network errors of its own.
    except Exception as error:
        reason = explain(error, revision)
    raise BundleInvalid(f"{given} is neither a folder here nor a bundle on the hub: {reason}")


def _unpack(snapshot: Path) -> Path:
    """The snapshot's files under names of their own, all or none."""
    target = snapshot.parents[1] / _UNPACKED / snapshot.name
    if target.is_dir():
        return target
    target.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", dir=target.parent) as scratch:
        draft = Path(scratch) / target.name
        shutil.copytree(snapshot, draft, copy_function=_link)
        try:
            draft.rename(target)
        except OSError:
            if not target.is_dir():  # else another process was faster
                raise
    return target


def _link(source: str, target: str) -> None:
    blob = Path(source).resolve()
    try:
        os.link(blob, target)
    except OSError:  # the file system has no hard links, or the blob lies on another one
        shutil.copyfile(blob, target)
