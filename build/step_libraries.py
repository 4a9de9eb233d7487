"""The libraries of all steps, which the process that steps are forked from imports through this module."""

from __future__ import annotations

import importlib

from loraplex.build.libraries import uncollected

with uncollected():
    for _name in (
        "olive.workflows",
        "loraplex.build.passes.awq",
        "loraplex.build.passes.training",
        "loraplex.build.passes.bundle",
    ):
        importlib.import_module(_name)
