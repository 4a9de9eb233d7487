"""`loraplex build`: a checkpoint and its adapters to a bundle."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

from loraplex.server.errors import LoraplexError

Method = Literal["k_quant", "rtn", "none"]


def build(
    *,
    base: str,
    adapter: Annotated[tuple[str, ...], Parameter(negative="")] = (),
    output: Annotated[Path, Parameter(alias="-o")],
    name: str | None = None,
    quantization: Method = "k_quant",
    group_size: Annotated[int, Parameter(validator=Number(gte=16, lte=256))] = 32,
) -> None:
    """Make a bundle of one base and its LoRA adapters, for the CPU.

    Parameters
    ----------
    base
        Hugging Face id or local folder of the checkpoint.
    adapter
        NAME=FOLDER of an adapter saved by PEFT; once for each.
    output
        Folder to write; a bundle that stands there is replaced.
    name
        What clients call the base; the last part of --base unless given.
    quantization
        How the linear layers are stored in 4 bits; none keeps float32.
    group_size
        Weights that share one scale.
    """
    adapters = _adapters(adapter)
    try:
        from loraplex.build.assembly import build_bundle
    except ImportError as error:
        sys.exit(f"loraplex: {error}; install loraplex[build]")
    try:
        bundle = build_bundle(
            base,
            adapters,
            output,
            name=name or Path(base).name,
            precision="float32" if quantization == "none" else "int4",
            group_size=group_size,
            algorithm="rtn" if quantization == "rtn" else "k_quant",
            head="int8",
            sources={each: str(folder) for each, folder in adapters.items()},
        )
    except LoraplexError as error:
        sys.exit(f"loraplex: {error.message}")
    models = ", ".join((bundle.manifest.base.name, *bundle.manifest.adapters))
    print(f"{output}: {models}\n\n  loraplex serve {output}")


def _adapters(given: tuple[str, ...]) -> dict[str, Path]:
    """Folders by name. Ends the command with status 2 where one is not NAME=FOLDER or a name comes twice."""
    adapters: dict[str, Path] = {}
    for each in given:
        name, equals, folder = each.partition("=")
        if not (name and equals and folder):
            problem = f"--adapter {each} is not NAME=FOLDER"
        elif name in adapters:
            problem = f"two adapters are named {name}"
        elif not Path(folder).is_dir():
            problem = f"--adapter {each}: there is no folder {folder}"
        else:
            adapters[name] = Path(folder)
            continue
        print(f"loraplex: {problem}", file=sys.stderr)
        sys.exit(2)
    return adapters
