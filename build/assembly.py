"""Checkpoint and adapters -> bundle, all or nothing."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from loraplex.build.adapter import convert
from loraplex.build.builder import DATA, Device, Precision
from loraplex.build.checkpoint import locate
from loraplex.build.errors import BuildFailed
from loraplex.build.export import export_base, run_once
from loraplex.build.fingerprint import fingerprint
from loraplex.build.lora_inputs import add_lora_inputs
from loraplex.build.paged import export_paged
from loraplex.build.peft_folder import read_config
from loraplex.build.weight_file import share_weights
from loraplex.build.weight_format import Algorithm, Head
from loraplex.server.bundle import MANIFEST, Base, Bundle, Manifest, Name, Sampling, Variant, WeightFile, write_manifest
from loraplex.server.engine.adapter_file import check_adapter
from loraplex.server.engine.linker import share

GENERATOR = "base/generator"
PAGED = "base/paged"


def build_bundle(
    checkpoint: Path | str,
    adapters: Mapping[str, Path],
    output: Path,
    *,
    name: str,
    precision: Precision,
    device: Device = "cpu",
    description: str = "",
    descriptions: Mapping[str, str] | None = None,
    sources: Mapping[str, str] | None = None,
    chat_templates: Mapping[str, Path] | None = None,
    samplings: Mapping[str, Sampling] | None = None,
    group_size: int | None = None,
    algorithm: Algorithm | None = None,
    head: Head = "int8",
    check: Callable[[Bundle], object] | None = None,
    log: Path | None = None,
) -> Bundle:
    """Write a bundle of one base and its adapters, PEFT folders by name, and return it opened.

    `build_base` and `add_adapters` in one. Raises AdapterInvalid, CheckpointUnsupported, ExportFailed, BuildFailed, and
    what `check` raises.
    """
    extras = Extras(descriptions or {}, sources or {}, chat_templates or {}, samplings or {})
    _check_names(name, adapters, extras)
    # Whatever is wrong with an adapter's config shows before the base has been exported for minutes.
    for adapter, peft in adapters.items():
        read_config(peft, adapter)
    folder = locate(checkpoint)
    with _draft(output) as draft:
        bundle = build_base(
            folder,
            draft,
            name=name,
            precision=precision,
            device=device,
            description=description,
            group_size=group_size,
            algorithm=algorithm,
            head=head,
            log=log,
        )
        bundle = _write_adapters(bundle, adapters, extras)
        if check:
            check(bundle)
    return Bundle.open(output)


def build_base(
    checkpoint: Path | str,
    output: Path,
    *,
    name: str,
    precision: Precision,
    device: Device = "cpu",
    description: str = "",
    merged: str = "",
    group_size: int | None = None,
    algorithm: Algorithm | None = None,
    head: Head = "int8",
    log: Path | None = None,
) -> Bundle:
    """Write a bundle without adapters into `output`, which must not hold anything yet, and return it opened.

    The other options are those of `export.export_base`. On CUDA the base gets a paged variant too; both read one weight
    file. No GPU is needed. `merged` names the adapter that is part of the checkpoint's weights (`merge.merge_adapter`):
    such a base takes no others, so its graph gets no LoRA inputs.

    Raises CheckpointUnsupported or ExportFailed; what is in `output` is then void.
    """
    folder = locate(checkpoint)
    generator, paged = output / GENERATOR, output / PAGED
    export = export_base(
        folder,
        generator,
        precision=precision,
        device=device,
        group_size=group_size,
        algorithm=algorithm,
        head=head,
        log=log,
    )
    variants: dict[Variant, str] = {"generator": GENERATOR}
    if device == "cuda":
        variants["paged"] = PAGED
        export_paged(folder, paged, precision=precision, group_size=group_size, algorithm=algorithm, head=head, log=log)
        share_weights([generator, paged])
    base = Base(
        name=name,
        architecture=export.architecture,
        fingerprint=fingerprint(folder),
        dtype=export.dtype,
        quantization=export.quantization,
        context_length=export.context_length,
        vocab_size=export.vocab_size,
        projections={} if merged else add_lora_inputs(generator),
        description=description,
        sampling=export.sampling,
        merged=merged,
    )
    run_once(generator)
    weights = WeightFile(f"{GENERATOR}/{DATA}", (generator / DATA).stat().st_size)
    write_manifest(output / MANIFEST, Manifest(format=1, base=base, variants=variants, adapters={}, weights=weights))
    return Bundle.open(output)


def add_adapters(
    base: Bundle,
    adapters: Mapping[str, Path],
    output: Path,
    *,
    descriptions: Mapping[str, str] | None = None,
    sources: Mapping[str, str] | None = None,
    chat_templates: Mapping[str, Path] | None = None,
    samplings: Mapping[str, Sampling] | None = None,
    check: Callable[[Bundle], object] | None = None,
) -> Bundle:
    """Write a bundle of a ready base (`build_base`) and adapters, PEFT folders by name, and return it opened.

    Files of the base are hard-linked where the file system allows it. Mappings by adapter name may leave out adapters.
    Everything is made in a hidden folder beside `output` and renamed at the end, so that `output` is either a whole
    bundle or what it was before. A bundle that stands there is replaced; anything else but an empty folder is refused.
    `check` gets the finished bundle before it is renamed, and may raise or add files.

    Raises AdapterInvalid, ExportFailed, BuildFailed, and what `check` raises.
    """
    extras = Extras(descriptions or {}, sources or {}, chat_templates or {}, samplings or {})
    _check_names(base.manifest.base.name, adapters, extras)
    with _draft(output) as draft:
        shutil.copytree(
            base.folder,
            draft,
            copy_function=lambda source, target: share(Path(source), Path(target)),
            dirs_exist_ok=True,
        )
        bundle = _write_adapters(Bundle.open(draft), adapters, extras)
        if check:
            check(bundle)
    return Bundle.open(output)


@dataclass(frozen=True)
class Extras:
    """What is said of adapters, by name; see `adapter.convert`."""

    descriptions: Mapping[str, str]
    sources: Mapping[str, str]
    chat_templates: Mapping[str, Path]
    samplings: Mapping[str, Sampling]


def _write_adapters(bundle: Bundle, adapters: Mapping[str, Path], extras: Extras) -> Bundle:
    """Convert adapters into a bundle that has none yet, run each once, and name them in its manifest."""
    base = bundle.manifest.base
    if adapters and base.merged:
        raise BuildFailed(f"{base.name} has the adapter {base.merged} merged into it and takes no others")
    files = {}
    for adapter, peft in adapters.items():
        target = bundle.folder / "adapters" / adapter
        convert(
            peft,
            base,
            target,
            name=adapter,
            description=extras.descriptions.get(adapter, ""),
            source=extras.sources.get(adapter, ""),
            chat_template=extras.chat_templates.get(adapter),
            sampling=extras.samplings.get(adapter),
        )
        files[adapter] = target / check_adapter(target, base).file
    if files:
        run_once(bundle.variant("generator"), files)
    folders = {adapter: f"adapters/{adapter}" for adapter in adapters}
    # Not over the old file, which may be a hard link to that of another bundle.
    (bundle.folder / MANIFEST).unlink()
    write_manifest(bundle.folder / MANIFEST, msgspec.structs.replace(bundle.manifest, adapters=folders))
    return Bundle.open(bundle.folder)


@contextlib.contextmanager
def _draft(output: Path) -> Iterator[Path]:
    """A folder that gets the name `output` if nothing is raised meanwhile; see `add_adapters`."""
    if output.exists() and not (output / MANIFEST).is_file() and not (output.is_dir() and not any(output.iterdir())):
        raise BuildFailed(f"{output} exists and is not a bundle: move it away or give another output")
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as scratch:
        draft = Path(scratch) / "bundle"
        draft.mkdir()
        yield draft
        put_in_place(draft, output, Path(scratch) / "replaced")


def _check_names(name: str, adapters: Mapping[str, Path], extras: Extras) -> None:
    try:
        msgspec.convert(name, Name)
    except msgspec.ValidationError:
        raise BuildFailed(f"{name!r} cannot be a base's name: use letters, digits, '.', '_' and '-'") from None
    if name in adapters:
        raise BuildFailed(f"{name!r} is the name of the base and of an adapter")
    mappings: tuple[Mapping[str, object], ...] = (
        extras.descriptions,
        extras.sources,
        extras.chat_templates,
        extras.samplings,
    )
    for mapping in mappings:
        if unknown := mapping.keys() - adapters.keys():
            raise BuildFailed(f"there is no adapter {min(unknown)!r} to describe")


def put_in_place(draft: Path, output: Path, replaced: Path) -> None:
    """Rename the draft to its final name, and back what stood there if that fails."""
    try:
        if output.exists():
            output.rename(replaced)
        draft.rename(output)
    except BaseException:  # a signal, too, may come between the two
        if replaced.exists() and not output.exists():
            replaced.rename(output)
        raise
    shutil.rmtree(replaced, ignore_errors=True)
