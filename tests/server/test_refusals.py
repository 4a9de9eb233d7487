"""docs/api.md's table of refusals says what the code does.

    python -m tests.server.test_refusals

writes it anew: a row for each class of error that a client can get, with what the class says of itself, and with a
message of those that the server's code makes of it, its values left out.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from loraplex.server import errors
from loraplex.server.api.contract import ADMIN, EVERYWHERE, KEYED, NAMED, OPERATIONS

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "api.md"
BEGIN = "<!-- written by python -m tests.server.test_refusals -->\n"
END = "<!-- to here -->\n"


def on_the_wire(kind: type[errors.LoraplexError] = errors.LoraplexError) -> Iterator[type[errors.LoraplexError]]:
    """Every class of error that a request can end in."""
    for each in kind.__subclasses__():
        # Those of `loraplex build` are known here too, once a test has imported it.
        if each is not errors.CannotStart and each.__module__ == errors.__name__:
            yield each
            yield from on_the_wire(each)


def messages() -> dict[str, set[str]]:
    """What the server's code says, by the name of the class that it says it with."""
    found: dict[str, set[str]] = defaultdict(set)
    for path in sorted((ROOT / "server").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Call(func=ast.Name(id=name), args=[first, *_]) if text := said(first):
                    found[name].add(text)
    return found


def said(message: ast.expr) -> str:
    """A message as the code has it, with an ellipsis for each value; empty where it is not written there."""
    match message:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=pieces):
            return "".join(said(piece) if isinstance(piece, ast.Constant) else "…" for piece in pieces)
    return ""


def table() -> str:
    lines = ["| status | code | when | for example |\n", "|---|---|---|---|\n"]
    found = messages()
    for kind in sorted(on_the_wire(), key=lambda kind: (kind.status, kind.code or "")):
        # The plainest says most of what is the same in all of them.
        example = min(found[kind.__name__], key=lambda text: (text.count("…"), -len(text), text), default="")
        cells = (str(kind.status), f"`{kind.code}`", (kind.__doc__ or "").rstrip("."), example)
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |\n")
    return "".join(lines)


def test_the_table_is_what_the_code_says() -> None:
    page = PAGE.read_text()
    assert BEGIN + table() + END in page, "out of date: python -m tests.server.test_refusals"


def test_every_error_is_raised_and_says_what_it_is() -> None:
    found = messages()
    for kind in on_the_wire():
        assert kind.__doc__, kind
        assert kind.code, kind
        assert found[kind.__name__] or kind in (errors.InvalidHTTP,), kind  # whose message is uvicorn's
    codes = [kind.code for kind in on_the_wire()]
    assert len(set(codes)) == len(codes)


def test_every_error_is_in_the_contract() -> None:
    declared = {*KEYED, *ADMIN, *EVERYWHERE, *NAMED, errors.MethodNotAllowed}
    declared |= {error for operation in OPERATIONS for error in operation.errors}
    assert declared == set(on_the_wire())


if __name__ == "__main__":
    before, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(before + BEGIN + table() + END + rest.partition(END)[2])
