"""A bundle -> a model repository of the Hugging Face hub, or a model of an Azure ML workspace.

Only bundles that the server would take are published, and all of one at once: readers see the old commit or version,
or the whole new one.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from loraplex.build.azure import Workspace, open_workspace, told
from loraplex.build.errors import BuildFailed, first_line
from loraplex.build.model_card import README, model_card
from loraplex.server.bundle import Bundle
from loraplex.server.engine.adapter_file import check_adapter

if TYPE_CHECKING:
    from azure.ai.ml.entities import Model

_HUB = re.compile(r"hf:(?P<repository>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)")
_AZURE = re.compile(r"azureml:(?P<name>[A-Za-z0-9][\w.-]{0,254})(:(?P<version>[A-Za-z0-9][\w.-]{0,29}))?")


class PublishFailed(BuildFailed):
    """Credentials for the hub are missing, or it said no."""

    code = "publish_failed"


@dataclass(frozen=True)
class HubTarget:
    """OWNER/NAME on the Hugging Face hub."""

    repository: str


@dataclass(frozen=True)
class AzureTarget:
    """A model of an Azure ML workspace; without a version the service counts on."""

    name: str
    version: str | None


def parse_target(to: str) -> HubTarget | AzureTarget:
    """`hf:OWNER/NAME` or `azureml:NAME[:VERSION]`. Raises ValueError with a message for people."""
    if match := _HUB.fullmatch(to):
        return HubTarget(match["repository"])
    if match := _AZURE.fullmatch(to):
        return AzureTarget(match["name"], match["version"])
    raise ValueError(f"--to {to}: give hf:OWNER/NAME or azureml:NAME[:VERSION]")


def publish_to_hub(bundle: Bundle, target: HubTarget, *, public: bool = False, message: str = "") -> str:
    """Publish in one commit; return its address. The repository is made, private unless `public`, if there is none.

    Files of an earlier bundle that this one does not have are deleted. A public repository is not written to unless
    `public`. Raises PublishFailed, AdapterInvalid and BundleInvalid.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    api = HfApi()
    if api.token is None and _no_token():
        raise PublishFailed(f"no credentials for {target.repository}: log in with `hf auth login`, or set HF_TOKEN")
    with _staged(bundle, target.repository) as folder:
        files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
        try:
            api.create_repo(target.repository, private=not public, exist_ok=True)
            info = api.model_info(target.repository)
            if not public and not info.private:
                raise PublishFailed(f"{target.repository} exists and is public: give --public to publish there")
            there = {sibling.rfilename for sibling in info.siblings or ()}
            stale = [name for name in sorted(there - files.keys()) if name.startswith(("base/", "adapters/"))]
            commit = api.create_commit(
                target.repository,
                [
                    *(CommitOperationAdd(name, path) for name, path in files.items()),
                    *(CommitOperationDelete(name) for name in stale),
                ],
                commit_message=message or f"Publish {bundle.manifest.base.name}",
            )
        except OfflineModeIsEnabled:
            raise PublishFailed("the hub cannot be reached: HF_HUB_OFFLINE is set") from None
        except HfHubHTTPError as error:
            status = error.response.status_code
            if status in (401, 403):
                raise PublishFailed(
                    f"the token may not write to {target.repository}: log in with `hf auth login`, or set HF_TOKEN"
                ) from error
            raise PublishFailed(
                f"the hub refused {target.repository} with status {status}: {first_line(error)}"
            ) from error
        except PublishFailed:
            raise
        # Uploads run through several libraries, each with network errors of its own.
        except Exception as error:
            raise PublishFailed(f"publishing to {target.repository} failed: {first_line(error)}") from error
    return str(commit.commit_url)


def publish_to_azure(
    bundle: Bundle, target: AzureTarget, *, workspace: Workspace, tags: Mapping[str, str], description: str = ""
) -> str:
    """Register the bundle as a model of an Azure ML workspace; return `azureml:NAME:VERSION`.

    Raises AzureFailed, AdapterInvalid and BundleInvalid.
    """
    client = open_workspace(workspace)
    with _staged(bundle, "FOLDER") as folder, told(target.name):
        model = client.models.create_or_update(azure_model(bundle, target, folder, tags, description))
    return f"azureml:{model.name}:{model.version}"


def azure_model(
    bundle: Bundle, target: AzureTarget, folder: Path, tags: Mapping[str, str], description: str = ""
) -> Model:
    """The model as Azure ML's SDK has it: name, version, path, tags. What the bundle is goes into the tags."""
    from azure.ai.ml.constants import AssetTypes
    from azure.ai.ml.entities import Model

    base = bundle.manifest.base
    own = {
        "loraplex.base": base.name,
        "loraplex.architecture": base.architecture,
        "loraplex.quantization": base.quantization.method,
        "loraplex.adapters": ",".join(bundle.manifest.adapters),
        "loraplex.fingerprint": base.fingerprint,
    }
    return Model(
        path=str(folder),
        name=target.name,
        version=target.version,
        type=AssetTypes.CUSTOM_MODEL,
        description=description or base.description or f"loraplex bundle of {base.name}",
        tags=own | dict(tags),
    )


def _no_token() -> bool:
    from huggingface_hub import get_token

    return get_token() is None


@contextmanager
def _staged(bundle: Bundle, place: str) -> Iterator[Path]:
    """A folder with exactly what is published: the bundle without hidden files, and its README.md."""
    for name in bundle.manifest.adapters:
        check_adapter(bundle.adapter(name), bundle.manifest.base)
    card = model_card(bundle, place)
    # Beside the bundle, so that hard links can be made.
    with tempfile.TemporaryDirectory(
        prefix=f".{bundle.folder.name}.", dir=_writable(bundle.folder.resolve().parent)
    ) as scratch:
        folder = Path(scratch) / bundle.manifest.base.name
        shutil.copytree(
            bundle.folder, folder, copy_function=_link_or_copy, ignore=shutil.ignore_patterns(".*", "__pycache__")
        )
        (folder / README).unlink(missing_ok=True)
        (folder / README).write_text(card, encoding="utf-8")
        yield folder


def _writable(folder: Path) -> Path | None:
    return folder if os.access(folder, os.W_OK) else None


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(Path(source).resolve(), target)
    except OSError:
        shutil.copyfile(source, target)
