"""Adapters of random weights, to measure with: what a step costs does not depend on what they say."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import msgspec
import numpy as np

from loraplex.build.adapter import write_adapter
from loraplex.build.peft_folder import Module
from loraplex.server.bundle import MANIFEST, AdapterManifest, Base, Bundle, write_manifest
from loraplex.server.engine.linker import share

SCALE = 0.01
"""Standard deviation of the weights: small enough to leave the base's answers sane."""


def write_random(
    base: Base, folder: Path, name: str, *, rank: int, seed: int, modules: Collection[str] = ()
) -> AdapterManifest:
    """Write an adapter of this rank for the base into `folder`; return what its adapter.json says.

    `modules` are the linear layers that it covers, such as `q_proj`; all where none is named.
    """
    random = np.random.default_rng(seed)
    found = {}
    for projection, (rows, columns) in base.projections.items():
        if not modules or projection.rpartition(".")[2] in modules:
            a = random.standard_normal((rows, rank), np.float32) * SCALE
            b = random.standard_normal((rank, columns), np.float32) * SCALE
            found[projection] = Module(rank, float(rank), a, b)
    return write_adapter(found, base, folder, name=name, source="random weights")


def with_random_adapters(bundle: Bundle, folder: Path, count: int, *, rank: int, modules: Collection[str]) -> Bundle:
    """A bundle in `folder` of the same base, hard-linked where the file system can, and of `count` random adapters."""
    manifest = bundle.manifest
    for variant, relative in manifest.variants.items():
        (folder / relative).mkdir(parents=True)
        for file in bundle.variant(variant).iterdir():
            if file.is_file():
                share(file, folder / relative / file.name)
    folders = {f"random-{index}": f"adapters/random-{index}" for index in range(count)}
    for seed, (name, relative) in enumerate(folders.items()):
        write_random(manifest.base, folder / relative, name, rank=rank, seed=seed, modules=modules)
    write_manifest(folder / MANIFEST, msgspec.structs.replace(manifest, adapters=folders))
    return Bundle.open(folder)
