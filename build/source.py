"""Where a recipe's base comes from: a folder, the Hugging Face hub or an Azure ML registry."""

from __future__ import annotations

import re
from pathlib import Path

from loraplex.build.checkpoint import locate
from loraplex.build.errors import CheckpointUnsupported, first_line

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
    from olive.resource_path import create_resource_path

    resource = create_resource_path(
        {
            "type": "azureml_registry_model",
            "config": dict(zip(("registry_name", "name", "version"), match.groups(), strict=True)),
        }
    )
    try:
        return Path(resource.save_to_dir(work / "base", overwrite=True))
    except ImportError as error:
        raise CheckpointUnsupported(f"{base}: {error}; pip install 'olive-ai[azureml]'") from error
    except Exception as error:
        # azure-core, azure-identity and azure-ai-ml have no base class in common.
        raise CheckpointUnsupported(f"{base} cannot be downloaded: {first_line(error)}") from error
