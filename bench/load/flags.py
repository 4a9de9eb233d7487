"""The kinds of values that the flags of `loraplex bench` have."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from cyclopts import Parameter
from cyclopts.validators import Number

from loraplex.bench.errors import OptionsInvalid

AtLeastOne = Annotated[int, Parameter(validator=Number(gte=1))]
NotNegative = Annotated[int, Parameter(validator=Number(gte=0))]
OverZero = Annotated[float, Parameter(validator=Number(gt=0))]
Flag = Annotated[bool, Parameter(negative="")]
Several = Annotated[tuple[str, ...], Parameter(consume_multiple=True, negative="")]
"""Values one after the other, as vLLM's `nargs="+"`."""


def pairs(given: tuple[str, ...], flag: str) -> dict[str, str]:
    """Values by key of KEY=VALUE. Raises OptionsInvalid."""
    found = {}
    for each in given:
        key, equals, value = each.partition("=")
        if not (key.strip() and equals):
            raise OptionsInvalid(f"{flag} {each} is not KEY=VALUE")
        found[key.strip()] = value.strip()
    return found


def json_object(given: str | None, flag: str) -> dict[str, Any]:
    """Raises OptionsInvalid."""
    if given is None:
        return {}
    try:
        return msgspec.json.decode(given, type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise OptionsInvalid(f"{flag} is not a JSON object: {error}") from None
