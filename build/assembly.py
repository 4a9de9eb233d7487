"""Checkpoint and adapters -> bundle, all or nothing."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

import msgspec

from loraplex.build.adapter import convert
from loraplex.build.checkpoint import locate
from loraplex.build.errors import BuildFailed
from loraplex.build.export import Algorithm, Head, Precision, export_base, run_once
from loraplex.build.fingerprint import fingerprint
from loraplex.build.lora_inputs import add_lora_inputs
from loraplex.build.peft_folder import read_config
from loraplex.server.bundle import MANIFEST, Base, Bundle, Manifest, Name, Sampling, write_manifest
from loraplex.server.engine.adapter_file import check_adapter

GENERATOR = "base/generator"


def build_bundle(
    checkpoint: Path | str,
    adapters: Mapping[str, Path],
    output: Path,
    *,
    name: str,
    precision: Precision,
    description: str = "",
    descriptions: Mapping[str, str] | None = None,
    sources: Mapping[str, str] | None = None,
    chat_templates: Mapping[str, Path] | None = None,
    samplings: Mapping[str, Sampling] | None = None,
    group_size: int = 32,
    algorithm: Algorithm = "k_quant",
    head: Head = "float32",
    log: Path | None = None,
) -> Bundle:
    """Write a bundle of one base and its adapters, PEFT folders by name, and return it opened.

    Mappings by adapter name may leave out adapters. The other options are those of `export.export_base`. Everything is
    made in a hidden folder beside `output` and renamed at the end, so that `output` is either a whole bundle or what
    it was before. A bundle that stands there is replaced; anything else but an empty folder is refused.

    Raises AdapterInvalid, CheckpointUnsupported, ExportFailed or BuildFailed.
    """
    _check_names(name, adapters, (descriptions, sources, chat_templates, samplings))
    if output.exists() and not (output / MANIFEST).is_file() and not (output.is_dir() and not any(output.iterdir())):
        raise BuildFailed(f"{output} exists and is not a bundle: move it away or give another output")
    # Whatever is wrong with an adapter's config shows before the base has been exported for minutes.
    for adapter, peft in adapters.items():
        read_config(peft, adapter)
    folder = locate(checkpoint)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as scratch:
        draft = Path(scratch) / "bundle"
        generator = draft / GENERATOR
        export = export_base(
            folder, generator, precision=precision, group_size=group_size, algorithm=algorithm, head=head, log=log
        )
        base = Base(
            name=name,
            architecture=export.architecture,
            fingerprint=fingerprint(folder),
            dtype=export.dtype,
            quantization=export.quantization,
            context_length=export.context_length,
            vocab_size=export.vocab_size,
            projections=add_lora_inputs(generator),
            description=description,
            sampling=export.sampling,
        )
        files = {}
        for adapter, peft in adapters.items():
            target = draft / "adapters" / adapter
            convert(
                peft,
                base,
                target,
                name=adapter,
                description=(descriptions or {}).get(adapter, ""),
                source=(sources or {}).get(adapter, ""),
                chat_template=(chat_templates or {}).get(adapter),
                sampling=(samplings or {}).get(adapter),
            )
            files[adapter] = target / check_adapter(target, base).file
        run_once(generator, files)
        manifest = Manifest(
            format=1,
            base=base,
            variants={"generator": GENERATOR},
            adapters={adapter: f"adapters/{adapter}" for adapter in adapters},
        )
        write_manifest(draft / MANIFEST, manifest)
        Bundle.open(draft)
        _put_in_place(draft, output, Path(scratch) / "replaced")
    return Bundle.open(output)


def _check_names(name: str, adapters: Mapping[str, Path], options: tuple[Mapping[str, object] | None, ...]) -> None:
    try:
        msgspec.convert(name, Name)
    except msgspec.ValidationError:
        raise BuildFailed(f"{name!r} cannot be a base's name: use letters, digits, '.', '_' and '-'") from None
    if name in adapters:
        raise BuildFailed(f"{name!r} is the name of the base and of an adapter")
    for mapping in options:
        if unknown := (mapping or {}).keys() - adapters.keys():
            raise BuildFailed(f"there is no adapter {min(unknown)!r} to describe")


def _put_in_place(draft: Path, output: Path, replaced: Path) -> None:
    """Rename the draft to its final name, and back what stood there if that fails."""
    if output.exists():
        output.rename(replaced)
    try:
        draft.rename(output)
    except OSError:
        if replaced.exists():
            replaced.rename(output)
        raise
    shutil.rmtree(replaced, ignore_errors=True)
