"""The README.md of a published bundle."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from loraplex.server.bundle import Bundle, read_adapter_manifest

README = "README.md"
_TEMPLATE = Path(__file__).with_name("model_card.md.jinja")


def model_card(bundle: Bundle, place: str) -> str:
    """The bundle's own README.md, or else one that tells what is in it. `place` is what `loraplex serve` will take."""
    own = bundle.folder / README
    if own.is_file():
        return own.read_text(encoding="utf-8")
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATE.parent),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        autoescape=False,
    )
    environment.filters |= {"cell": _cell, "modules": _modules}
    size = sum(path.stat().st_size for path in bundle.folder.rglob("*") if path.is_file())
    return environment.get_template(_TEMPLATE.name).render(
        base=bundle.manifest.base,
        variants=list(bundle.manifest.variants),
        adapters={name: read_adapter_manifest(bundle.adapter(name)) for name in bundle.manifest.adapters},
        megabytes=f"{size / 1e6:,.1f}",
        place=place,
    )


def _cell(text: str) -> str:
    """Text that cannot break out of a table."""
    return " ".join(text.replace("|", "\\|").split())


def _modules(projections: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(projection.rpartition(".")[2] for projection in projections))
