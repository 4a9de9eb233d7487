"""Putting one more adapter into a bundle that exists, or into a folder of its own, all or nothing."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import msgspec
from filelock import FileLock, Timeout

from loraplex.build.errors import BuildFailed
from loraplex.build.peft_folder import check_name
from loraplex.server.bundle import ADAPTER_MANIFEST, MANIFEST, AdapterManifest, Base, Bundle, write_manifest
from loraplex.server.engine.adapter_file import check_adapter
from loraplex.server.errors import AdapterInvalid

ADAPTERS = "adapters"
LOCK = ".bundle.lock"
_PATIENCE = 60
"""Seconds to wait for another process that adds an adapter to the same bundle."""


def add_adapter(
    bundle: Path, name: str, write: Callable[[Base, Path], object], *, replace: bool = False
) -> AdapterManifest:
    """Let `write` make an adapter in a hidden folder of the bundle, check it, and name it in bundle.json.

    At every moment bundle.json names whole adapters only, save for the instant between the two renames that replace
    one; files that a server has open stay as they were. Another process that does the same waits. Raises BundleInvalid,
    AdapterInvalid, also where the name is taken and `replace` is not set, BuildFailed where the bundle cannot be
    written, and what `write` raises.
    """
    check_name(name)
    Bundle.open(bundle)
    lock = FileLock(bundle / LOCK, timeout=_PATIENCE)
    try:
        with lock:
            return _add(Bundle.open(bundle), name, write, replace)
    except Timeout:
        raise BuildFailed(f"{bundle} is being changed by another process: try again") from None
    except OSError as error:
        raise BuildFailed(f"{bundle} cannot be changed: {error}") from error


def write_folder(
    base: Base, output: Path, name: str, write: Callable[[Base, Path], object], *, replace: bool = False
) -> AdapterManifest:
    """The same for a folder outside any bundle. Only an adapter is replaced, nothing else that stands there."""
    check_name(name)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        if not (output / ADAPTER_MANIFEST).is_file():
            raise AdapterInvalid(f"adapter {name}: {output} exists and is no adapter, give another --output")
        if not replace:
            raise AdapterInvalid(f"adapter {name}: {output} exists: give another --output, or --replace it")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        return _put(base, output, name, write, lambda: None)
    except OSError as error:
        raise BuildFailed(f"{output} cannot be written: {error}") from error


def copy_adapter(source: Path, base: Base, output: Path, *, name: str, description: str = "") -> None:
    """Copy an adapter that is in our own form already, under another name. Raises AdapterInvalid if it does not fit."""
    manifest = check_adapter(source, base)
    output.mkdir()
    file = f"{name}.onnx_adapter"
    shutil.copyfile(source / manifest.file, output / file)
    if manifest.chat_template:
        shutil.copyfile(source / manifest.chat_template, output / Path(manifest.chat_template).name)
    changed = msgspec.structs.replace(
        manifest,
        file=file,
        description=description or manifest.description,
        chat_template=Path(manifest.chat_template).name if manifest.chat_template else None,
    )
    write_manifest(output / ADAPTER_MANIFEST, changed)


def _add(bundle: Bundle, name: str, write: Callable[[Base, Path], object], replace: bool) -> AdapterManifest:
    manifest = bundle.manifest
    if name == manifest.base.name:
        raise AdapterInvalid(f"adapter {name}: this is the name of the base of {bundle.folder}, take another")
    if name in manifest.adapters and not replace:
        raise AdapterInvalid(f"adapter {name}: {bundle.folder} has one of this name: take another, or --replace it")
    target = bundle.adapter(name) if name in manifest.adapters else bundle.folder / ADAPTERS / name
    if target.exists() and name not in manifest.adapters:
        raise AdapterInvalid(f"adapter {name}: {target} exists, but bundle.json does not name it: move it away")
    target.parent.mkdir(parents=True, exist_ok=True)

    def announce() -> None:
        if name not in manifest.adapters:
            _write_manifest(bundle, name, f"{ADAPTERS}/{name}")

    return _put(manifest.base, target, name, write, announce)


def _put(
    base: Base, target: Path, name: str, write: Callable[[Base, Path], object], announce: Callable[[], None]
) -> AdapterManifest:
    """Write and check in a hidden folder beside `target`, rename it, announce it; back to what was if that fails."""
    with tempfile.TemporaryDirectory(prefix=f".{name}.", dir=target.parent) as scratch:
        draft, replaced = Path(scratch) / name, Path(scratch) / "replaced"
        write(base, draft)
        added = check_adapter(draft, base)
        if target.exists():
            target.rename(replaced)
        try:
            draft.rename(target)
            announce()
        except OSError:
            shutil.rmtree(target, ignore_errors=True)
            if replaced.exists():
                replaced.rename(target)
            raise
    return added


def _write_manifest(bundle: Bundle, name: str, folder: str) -> None:
    adapters = {**bundle.manifest.adapters, name: folder}
    path = bundle.folder / MANIFEST
    written = path.with_name(f".{MANIFEST}.{os.getpid()}")
    try:
        write_manifest(written, msgspec.structs.replace(bundle.manifest, adapters=adapters))
        written.replace(path)
    finally:
        written.unlink(missing_ok=True)
