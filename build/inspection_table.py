"""The report on an adapter as people read it."""

from __future__ import annotations

from loraplex.build.inspection import FOLDED, ModuleReport, Report


def table(report: Report) -> str:
    """Several lines: what the adapter is, then its modules, those of all layers in one row where they are alike."""
    facts = {
        "adapter": report.path,
        "kind": report.kind,
        "description": report.description,
        "base": report.base or "not said",
        "dtype": report.dtype,
        "size": f"{report.bytes:,} bytes",
        "sha256": report.sha256,
    }
    lines = [f"{label:<12} {value}" for label, value in facts.items() if value]
    if report.fits is not None:
        lines.append(f"{'bundle':<12} {report.bundle}: {'fits' if report.fits else 'does not fit'}")
    lines += [f"{'problem':<12} {problem}" for problem in (*report.problems, *report.reasons)]
    return "\n".join([*lines, "", *_rows(report.modules, "in B" if report.kind == FOLDED else "?")])


def _rows(modules: dict[str, ModuleReport], unknown_scale: str) -> list[str]:
    groups: dict[tuple[str, ModuleReport], list[int]] = {}
    for path, module in modules.items():
        layer = next((int(part) for part in path.split(".") if part.isdigit()), 0)
        groups.setdefault((path.rpartition(".")[2], module), []).append(layer)
    rows = [("module", "layers", "in", "out", "rank", "alpha", "scale")]
    rows += [
        (
            *(name, _ranges(layers), str(module.in_features), str(module.out_features), str(module.rank)),
            "?" if module.alpha is None else f"{module.alpha:g}",
            unknown_scale if module.scale is None else f"{module.scale:g}",
        )
        for (name, module), layers in sorted(groups.items(), key=lambda item: (item[1][0], item[0][0]))
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) if index < 2 else cell.rjust(width) for index, (cell, width) in enumerate(cells))
        for cells in (list(zip(row, widths, strict=True)) for row in rows)
    ]


def _ranges(layers: list[int]) -> str:
    """`0-3,5` for the layers 0, 1, 2, 3 and 5."""
    found: list[list[int]] = []
    for layer in sorted(layers):
        if found and layer == found[-1][1] + 1:
            found[-1][1] = layer
        else:
            found.append([layer, layer])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in found)
