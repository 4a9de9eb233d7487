"""Azure ML: a client of a workspace or a registry, and what its libraries' errors mean to people."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loraplex.build.errors import BuildFailed, first_line

if TYPE_CHECKING:
    from azure.ai.ml import MLClient

_PATIENCE: dict[str, Any] = {"connection_timeout": 10, "read_timeout": 60, "retry_total": 2}
"""Seconds and times. Left to itself azure-core waits for 300 seconds and tries ten times more."""
_LOG_IN = "log in with `az login`, or set AZURE_CLIENT_ID, AZURE_TENANT_ID and AZURE_CLIENT_SECRET"
_FAILED = re.compile(r"([A-Z]\w*Credential): Authentication failed: (.*?)(?:\\n|$)", re.MULTILINE)
"""Of a way to log in that was tried and refused; packages in Rust pass it on with escaped line ends."""


class AzureFailed(BuildFailed):
    """Azure's packages or credentials are missing, it cannot be reached, or it said no."""

    code = "azure_failed"


@dataclass(frozen=True)
class Workspace:
    """Where an Azure ML workspace is. Without these three, config.json tells, as Azure's own tools have it."""

    subscription: str | None = None
    resource_group: str | None = None
    workspace: str | None = None


def open_workspace(workspace: Workspace) -> MLClient:
    """A client with the credentials that azure-identity finds: environment, managed identity, `az login`.

    Nothing is asked of Azure yet. Raises AzureFailed.
    """
    place = (workspace.subscription, workspace.resource_group, workspace.workspace)
    if any(place) and not all(place):
        raise AzureFailed("an Azure ML workspace needs all of --subscription, --resource-group and --workspace")
    with _packages():
        from azure.ai.ml import MLClient
        from azure.core.exceptions import AzureError
    # Telemetry of azure-ai-ml is on unless it is told so here.
    options = {"credential": _credential(), "enable_telemetry": False, **_PATIENCE}
    if all(place):
        return MLClient(subscription_id=place[0], resource_group_name=place[1], workspace_name=place[2], **options)
    try:
        return MLClient.from_config(**options)
    # Of a file that is not JSON, or misses one of the three.
    except (AzureError, OSError, ValueError, KeyError) as error:
        raise AzureFailed(
            "which Azure ML workspace? give --subscription, --resource-group and --workspace, or a config.json with "
            "subscription_id, resource_group and workspace_name here"
        ) from error


def download_model(registry: str, name: str, version: str, folder: Path) -> None:
    """Download a model of a registry into a folder. Raises AzureFailed."""
    with _packages():
        from azure.ai.ml import MLClient
    with told(f"{name}:{version} of the registry {registry}"):
        client = MLClient(credential=_credential(), registry_name=registry, enable_telemetry=False, **_PATIENCE)
        client.models.download(name, version=version, download_path=folder)


@contextlib.contextmanager
def told(what: str) -> Iterator[None]:
    """Turn whatever Azure's packages raise while they work on `what` into AzureFailed."""
    from azure.core.exceptions import ClientAuthenticationError, ServiceRequestError, ServiceResponseError

    try:
        yield
    except BuildFailed:
        raise
    except ClientAuthenticationError as error:
        if error.response is not None:  # of the service: the token is there
            raise AzureFailed(f"Azure ML refused {what}: {first_line(error)}") from error
        raise AzureFailed(log_in_failed(str(error))) from error
    except (ServiceRequestError, ServiceResponseError) as error:
        raise AzureFailed(f"Azure cannot be reached: {first_line(error)}") from error
    # Transfers run through several packages, each with errors of its own.
    except Exception as error:
        raise AzureFailed(f"Azure ML refused {what}: {first_line(error)}") from error


def log_in_failed(message: str) -> str:
    """What to tell people of the page that azure-identity writes on every way to log in that it knows."""
    if match := _FAILED.search(message):
        return f"logging in to Azure failed ({match[1]}): {match[2]}"
    return f"no credentials for Azure: {_LOG_IN}"


def _credential() -> Any:
    from azure.identity import DefaultAzureCredential

    return DefaultAzureCredential(**_PATIENCE)


@contextlib.contextmanager
def _packages() -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise AzureFailed(f"{error}: install loraplex[publish-azure]") from None
