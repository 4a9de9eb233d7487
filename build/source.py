"""Where a recipe's base comes from: a folder, the Hugging Face hub or an Azure ML registry."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from loraplex.build.azure import AzureFailed, download_model
from loraplex.build.checkpoint import locate
from loraplex.build.errors import CheckpointUnsupported

_AZURE = re.compile(r"azureml://registries/([^/]+)/models/([^/]+)/versions/([^/]+)")


def is_remote(base: str, folder: Path) -> bool:
    """Whether getting a base named in a recipe in `folder` is a download."""
    if base.startswith("azureml://"):
        return True
    could_be_id = base.count("/") <= 1 and not base.startswith((".", "/", "~"))
    return could_be_id and not (folder / base).is_dir()


def fetch(base: str, folder: Path, work: Path, revision: str | None = None) -> Path:
    """The base's folder, downloaded into the Hugging Face cache or, from Azure ML, into `work`.

    Raises CheckpointUnsupported.
    """
    local = folder / Path(base).expanduser()
    if local.is_dir():
        return local
    if not base.startswith("azureml://"):
        return locate(base if is_remote(base, folder) else local, revision=revision)
    match = _AZURE.fullmatch(base)
    if match is None:
        raise CheckpointUnsupported(f"{base} is not azureml://registries/REGISTRY/models/NAME/versions/VERSION")
    whole, partial = work / "base" / "-".join(match.groups()), work / "base.partial"
    if not whole.is_dir():
        shutil.rmtree(partial, ignore_errors=True)
        try:
            download_model(match[1], match[2], match[3], partial)
        except AzureFailed as error:
            raise CheckpointUnsupported(f"{base} cannot be downloaded: {error.message}") from error
        whole.parent.mkdir(parents=True, exist_ok=True)
        partial.rename(whole)
    # A model in MLflow's form has the checkpoint some folders down.
    configs = sorted(whole.rglob("config.json"), key=lambda file: len(file.parts))
    return configs[0].parent if configs else whole
