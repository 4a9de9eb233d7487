"""Whether an adapter of a bundle is right: by its file, by the PEFT folder it was made from, and by its answers."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from loraplex.build.adapter import convert
from loraplex.build.errors import VerificationFailed
from loraplex.build.fingerprint import fingerprint
from loraplex.build.olive_adapter import AdapterFile, open_adapter_file, to_float32
from loraplex.server.bundle import MANIFEST, AdapterManifest, Base, Bundle, write_manifest
from loraplex.server.errors import AdapterInvalid

if TYPE_CHECKING:
    from loraplex.build.findings import Agreement

_STEP = {"float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}
"""The distance of neighbouring values at 1, by dtype."""


def compare_with_peft(folder: Path, manifest: AdapterManifest, base: Base, peft: Path) -> float:
    """Convert the PEFT folder again and compare: by how much any value differs, relative to the largest of its matrix.

    Raises AdapterInvalid where the PEFT folder does not fit the base, VerificationFailed where ranks differ, or values
    by more than a few roundings of the dtype.
    """
    name = Path(manifest.file).stem
    with tempfile.TemporaryDirectory() as scratch:
        again = convert(peft, base, Path(scratch), name=name)
        if again.ranks != manifest.ranks:
            odd = min(set(again.ranks.items()) ^ set(manifest.ranks.items()))[0]
            raise VerificationFailed(
                f"{odd} has rank {manifest.ranks.get(odd, 0)} in the adapter and {again.ranks.get(odd, 0)} in {peft}"
            )
        if again.sha256 == manifest.sha256:
            return 0.0
        worst, where = _largest_difference(
            open_adapter_file(folder / manifest.file, name), open_adapter_file(Path(scratch) / again.file, name)
        )
    if not worst <= (limit := 4 * _STEP[base.dtype]):
        raise VerificationFailed(f"{where} differs from {peft} by {worst:.3g} of its largest value (limit {limit:.3g})")
    return worst


def _largest_difference(adapter: AdapterFile, expected: AdapterFile) -> tuple[float, str]:
    found = {}
    for projection, module in adapter.modules.items():
        for side in "ab":
            values, wanted = (to_float32(getattr(each, side)) for each in (module, expected.modules[projection]))
            scale = float(np.abs(wanted).max(initial=0)) or 1.0
            found[f"{projection}.lora_{side.upper()}"] = float(np.abs(values - wanted).max(initial=0)) / scale
    where = max(found, key=lambda key: found[key])
    return found[where], where


def compare_answers(
    bundle: Bundle,
    folder: Path,
    manifest: AdapterManifest,
    checkpoint: Path,
    peft: Path,
    progress: Callable[[str], object],
) -> list[Agreement]:
    """Compare logits and greedy tokens with PEFT on the bundle's own weights, as `verification.verify_bundle` does.

    `checkpoint` is the folder of what the base was exported from. Raises AdapterInvalid where it is another one,
    VerificationFailed where answers differ.
    """
    from loraplex.build.verification import verify_bundle

    progress("the checkpoint's fingerprint")
    if (found := fingerprint(checkpoint)) != bundle.manifest.base.fingerprint:
        raise AdapterInvalid(
            f"{checkpoint} is not what {bundle.manifest.base.name} was made from: its fingerprint is {found[:19]}..., "
            f"the base's {bundle.manifest.base.fingerprint[:19]}..."
        )
    name = Path(manifest.file).stem
    parent = bundle.folder.resolve().parent
    # Beside the bundle, so that hard links can be made; verification writes its findings into what it verifies.
    with tempfile.TemporaryDirectory(
        prefix=f".{bundle.folder.name}.", dir=parent if os.access(parent, os.W_OK) else None
    ) as scratch:
        single = Path(scratch) / "bundle"
        shutil.copytree(bundle.folder / "base", single / "base", copy_function=_link_or_copy)
        shutil.copytree(folder, single / "adapters" / name, copy_function=_link_or_copy)
        alone = msgspec.structs.replace(bundle.manifest, adapters={name: f"adapters/{name}"})
        write_manifest(single / MANIFEST, alone)
        verification = verify_bundle(Bundle.open(single), checkpoint, {name: peft}, progress=progress)
    return [agreement for agreement in verification.agreements if agreement.model == name]


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(Path(source).resolve(), target)
    except OSError:
        shutil.copyfile(source, target)
