"""`loraplex adapter`: convert, inspect and verify one adapter against a bundle that exists."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import msgspec
from cyclopts import App, Parameter

from loraplex.build.adapter import convert as convert_peft
from loraplex.build.adapter import write_adapter
from loraplex.build.adapter_check import compare_with_peft
from loraplex.build.addition import add_adapter, copy_adapter, write_folder
from loraplex.build.errors import BuildFailed, VerificationFailed
from loraplex.build.inspection import inspect as inspect_adapter
from loraplex.build.inspection_table import table
from loraplex.build.olive_adapter import Scale, read_olive
from loraplex.build.peft_folder import PeftConfig, parse_config
from loraplex.build.peft_shapes import target_of_bundle
from loraplex.server.bundle import ADAPTER_MANIFEST, AdapterManifest, Base, Bundle
from loraplex.server.engine.adapter_file import check_adapter
from loraplex.server.errors import AdapterInvalid, BundleInvalid, LoraplexError

if TYPE_CHECKING:
    from loraplex.build.findings import Agreement

adapter = App(name="adapter", help="Convert, inspect and verify one adapter against a bundle that exists.")


@adapter.command
def convert(
    bundle: Path,
    source: Path,
    /,
    *,
    name: str,
    output: Annotated[Path | None, Parameter(alias="-o")] = None,
    add: Annotated[bool, Parameter(negative="")] = False,
    replace: Annotated[bool, Parameter(negative="")] = False,
    scale: Scale | None = None,
    config: Path | None = None,
    description: str = "",
    chat_template: Path | None = None,
) -> None:
    """Make an adapter for a bundle out of a PEFT folder or one of Olive's .onnx_adapter files.

    Parameters
    ----------
    bundle
        Folder of the bundle that the adapter is for.
    source
        PEFT folder, .onnx_adapter file, or an adapter's folder of another bundle with the same base.
    name
        What clients call the adapter.
    output
        Folder to write the adapter to; ./NAME unless --add is given.
    add
        Put the adapter into the bundle.
    replace
        Replace an adapter of the same name.
    scale
        Files only: whether B already holds alpha over rank. Olive folds it in. olive convert-adapters takes one scale
        for all modules, so adapters with a rank_pattern or an alpha_pattern have to come as PEFT folders.
    config
        Files only: the adapter_config.json of the training, which tells ranks and alphas.
    description
        One line for people.
    chat_template
        Jinja file of the adapter's own chat template.
    """
    if add and output is not None:
        _usage("--add puts the adapter into the bundle, --output elsewhere: give one of them")
    if source.is_file() and scale is None:
        _usage(
            f"{source} does not tell whether alpha over rank is in its weights: give --scale folded, as Olive writes "
            "them, or --scale unfolded with --config adapter_config.json"
        )
    if not source.is_file() and (scale is not None or config is not None):
        _usage("--scale and --config are for .onnx_adapter files: a PEFT folder tells both itself")

    def write(base: Base, folder: Path) -> None:
        _write(source, base, folder, name, scale, config, description, chat_template)

    with _errors():
        if add:
            added = add_adapter(bundle, name, write, replace=replace)
            place = bundle
        else:
            place = output or Path(name)
            added = write_folder(Bundle.open(bundle).manifest.base, place, name, write, replace=replace)
    ranks = sorted(set(added.ranks.values()))
    print(
        f"{place}: {name}, {len(added.ranks)} projections, rank {' and '.join(map(str, ranks))}, {added.dtype}"
        + (f"\n\n  loraplex serve {bundle}" if add else f"\n\n  loraplex adapter verify {bundle} {place}")
    )


@adapter.command
def inspect(
    adapter: Path,
    /,
    *,
    bundle: Path | None = None,
    json: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Tell what an adapter is: ranks, alphas, targets, dtype, size, digest, base. Ends with 1 if it does not fit.

    Parameters
    ----------
    adapter
        PEFT folder, adapter's folder of a bundle, or .onnx_adapter file.
    bundle
        Bundle to compare it with.
    json
        Print JSON, with every module.
    """
    with _errors():
        report = inspect_adapter(adapter, Bundle.open(bundle) if bundle else None)
    if json:
        print(msgspec.json.format(msgspec.json.encode(report), indent=2).decode())
    else:
        print(table(report))
    if report.problems or report.fits is False:
        sys.exit(1)


@adapter.command
def verify(
    bundle: Path,
    adapter: str,
    /,
    *,
    peft: Path | None = None,
    checkpoint: str | None = None,
) -> None:
    """Check an adapter against its bundle. Ends with 1 if it is not right.

    Without more, everything is checked that the server checks when it loads the adapter. With --peft its weights are
    compared with those of the PEFT folder, and with --checkpoint too its logits and greedy tokens with PEFT's.

    Parameters
    ----------
    bundle
        Folder of the bundle.
    adapter
        Name of one of its adapters, or the folder of one that is not in it yet.
    peft
        PEFT folder that it was made from.
    checkpoint
        Hugging Face id or folder of what the base was exported from.
    """
    if checkpoint is not None and peft is None:
        _usage("--checkpoint needs --peft, the adapter as PyTorch runs it")
    with _errors():
        opened = Bundle.open(bundle)
        folder = opened.adapter(adapter) if adapter in opened.manifest.adapters else Path(adapter)
        if not folder.is_dir():
            have = ", ".join(opened.manifest.adapters) or "none"
            raise BundleInvalid(f"{bundle} has no adapter {adapter} (it has: {have}), and there is no such folder")
        base = opened.manifest.base
        try:
            manifest = check_adapter(folder, base)
        except AdapterInvalid as error:
            raise VerificationFailed(error.message) from None
        print("ok  file, SHA-256, base, dtype; names, shapes, ranks and values of every tensor")
        if peft is not None:
            worst = compare_with_peft(folder, manifest, base, peft)
            print(f"ok  weights of {peft}: " + (f"off by {worst:.2g} at most, relative" if worst else "the same"))
        if peft is not None and checkpoint is not None:
            for found in _answers(opened, folder, manifest, checkpoint, peft):
                print(
                    f"ok  {found.lane}: {found.same + found.ties} of {found.tokens} greedy tokens, "
                    f"logits off by {found.difference:.2g}"
                    + (f" (limit {found.limit:.2g})" if found.limit is not None else " (as served, for comparison)")
                )


def _answers(bundle: Bundle, folder: Path, manifest: AdapterManifest, checkpoint: str, peft: Path) -> list[Agreement]:
    try:
        from loraplex.build.adapter_check import compare_answers
        from loraplex.build.builder import noise_to
        from loraplex.build.checkpoint import locate

        stderr = sys.stderr
        with noise_to(io.StringIO()):
            return compare_answers(
                bundle, folder, manifest, locate(checkpoint), peft, lambda step: print(f"... {step}", file=stderr)
            )
    except ImportError as error:
        raise BuildFailed(f"{error}; install loraplex[build]") from error


def _write(
    source: Path,
    base: Base,
    folder: Path,
    name: str,
    scale: Scale | None,
    config: Path | None,
    description: str,
    chat_template: Path | None,
) -> None:
    """Write the adapter in whichever form `source` is; see `convert`."""
    if source.is_dir() and (source / ADAPTER_MANIFEST).is_file():
        copy_adapter(source, base, folder, name=name, description=description)
    elif source.is_file() and scale is not None:
        target = target_of_bundle(base)
        modules = read_olive(source, target, name=name, scale=scale, config=_read_config(config, name))
        write_adapter(
            modules,
            base,
            folder,
            name=name,
            description=description,
            source=source.name,
            chat_template=chat_template,
        )
    else:
        convert_peft(
            source,
            base,
            folder,
            name=name,
            description=description,
            source=source.resolve().name,
            chat_template=chat_template,
        )


def _read_config(path: Path | None, name: str) -> PeftConfig | None:
    if path is None:
        return None
    config, problems = parse_config(path)
    if problems:
        raise AdapterInvalid(f"adapter {name}: {problems[0]}")
    return config


@contextmanager
def _errors() -> Iterator[None]:
    """End the command with one line: status 2 for what was given, 1 for what failed."""
    try:
        yield
    except (AdapterInvalid, BundleInvalid) as error:
        print(f"loraplex: {error.message}", file=sys.stderr)
        sys.exit(2)
    except LoraplexError as error:
        print(f"loraplex: {error.message}", file=sys.stderr)
        sys.exit(1)
    except OSError as error:
        print(f"loraplex: {error}", file=sys.stderr)
        sys.exit(1)


def _usage(message: str) -> NoReturn:
    print(f"loraplex: {message}", file=sys.stderr)
    sys.exit(2)
