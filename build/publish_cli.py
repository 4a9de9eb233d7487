"""`loraplex publish`: a bundle to the Hugging Face hub or to Azure ML."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, NoReturn

from cyclopts import Parameter

from loraplex.build.azure import Workspace
from loraplex.build.publish import AzureTarget, HubTarget, parse_target, publish_to_azure, publish_to_hub
from loraplex.server.bundle import Bundle
from loraplex.server.errors import AdapterInvalid, BundleInvalid, LoraplexError


def publish(
    bundle: Path,
    /,
    *,
    to: str,
    public: Annotated[bool, Parameter(negative="")] = False,
    message: str = "",
    description: str = "",
    tag: Annotated[tuple[str, ...], Parameter(negative="")] = (),
    subscription: Annotated[str | None, Parameter(env_var="AZURE_SUBSCRIPTION_ID")] = None,
    resource_group: Annotated[str | None, Parameter(env_var="AZURE_RESOURCE_GROUP")] = None,
    workspace: Annotated[str | None, Parameter(env_var="AZURE_ML_WORKSPACE")] = None,
) -> None:
    """Publish a bundle.

    Parameters
    ----------
    bundle
        Folder of the bundle.
    to
        hf:OWNER/NAME, a repository of the Hugging Face hub, or azureml:NAME[:VERSION], a model of an Azure ML
        workspace.
    public
        Make the hub's repository public, or write to one that is.
    message
        Message of the hub's commit.
    description
        Description of the Azure ML model.
    tag
        KEY=VALUE of the Azure ML model; once for each.
    subscription, resource_group, workspace
        The Azure ML workspace; unset, config.json here or above tells, as it does for Azure's own tools.
    """
    try:
        target = parse_target(to)
        tags = dict(_pair(each) for each in tag)
    except ValueError as error:
        _end(str(error), 2)
    try:
        opened = Bundle.open(bundle)
        match target:
            case HubTarget():
                print(f"{publish_to_hub(opened, target, public=public, message=message)}\n")
                print(f"  loraplex serve {target.repository}")
            case AzureTarget():
                place = Workspace(subscription, resource_group, workspace)
                print(publish_to_azure(opened, target, workspace=place, tags=tags, description=description))
    except (AdapterInvalid, BundleInvalid) as error:
        _end(error.message, 2)
    except LoraplexError as error:
        _end(error.message, 1)
    except ImportError as error:
        _end(f"{error}; install loraplex[cpu] or loraplex[cuda]", 1)


def _pair(given: str) -> tuple[str, str]:
    key, equals, value = given.partition("=")
    if not (key and equals):
        raise ValueError(f"--tag {given} is not KEY=VALUE")
    return key, value


def _end(message: str, status: int) -> NoReturn:
    print(f"loraplex: {message}", file=sys.stderr)
    sys.exit(status)
