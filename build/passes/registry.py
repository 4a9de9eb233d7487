"""Our Olive passes, in the form of Olive's package config: `olive run --package-config`."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

_ANY = {"supported_providers": ["*"], "supported_accelerators": ["*"], "supported_precisions": ["*"]}

OURS = {
    "AwqOnCpu": "loraplex.build.passes.awq.AwqOnCpu",
    "AwqOnCuda": "loraplex.build.passes.awq.AwqOnCuda",
    "AdapterLora": "loraplex.build.passes.training.AdapterLora",
    "AdapterQLora": "loraplex.build.passes.training.AdapterQLora",
    "AdapterConversion": "loraplex.build.passes.bundle.AdapterConversion",
    "BaseExport": "loraplex.build.passes.bundle.BaseExport",
    "BundleVerification": "loraplex.build.passes.bundle.BundleVerification",
}
"""Module path by the name that a workflow gives as a pass's type."""


def package_config() -> dict[str, Any]:
    """Olive's own package config with our passes added; given one, Olive takes no pass from elsewhere."""
    config: dict[str, Any] = json.loads((files("olive") / "olive_config.json").read_text(encoding="utf-8"))
    config["passes"] |= {name: {"module_path": path} | _ANY for name, path in OURS.items()}
    return config
