"""How a model family writes calls of tools, and the grammar that lets it write no other.

A format is chosen by what stands in the chat template. Its calls are written as the family's templates write them:
Hermes and Qwen (https://huggingface.co/Qwen/Qwen2.5-7B-Instruct), Llama 3.x
(https://www.llama.com/docs/model-cards-and-prompt-formats/llama3_1/), Mistral
(https://docs.mistral.ai/capabilities/function_calling/), Granite 3.x and Phi-4-mini
(https://huggingface.co/microsoft/Phi-4-mini-instruct).
"""

from __future__ import annotations

import json
import re
import secrets
import string
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from msgspec import Struct
from msgspec.structs import replace

JSON_NAME = r'"name"\s*:\s*"(?P<name>[^"]*)"\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)'


class ToolFormat(Struct, frozen=True, kw_only=True):
    """An answer with calls: text, `begin`, a call, `between` and another as often as it takes, `end`.

    A call is `open`, the name of the tool, `middle`, its arguments as a JSON object, `close`.
    """

    name: str
    trigger: str
    """What `begin` and `open` together begin with, and text never has."""
    begin: str = ""
    open: str
    middle: str
    close: str
    between: str = ""
    end: str = ""
    header: str = JSON_NAME
    """Regular expression for everything from a call's name to its arguments."""
    at_start: bool = False
    """The calls are the whole answer; text begins with something else than the trigger."""
    parallel: bool = True
    """An answer may have several calls."""
    shown_by: Literal["template", "system message", "prompt"] = "template"
    """Who tells the model of the tools and of earlier calls: its template; its template, given them as text in the
    system message; or we, because its template knows of neither."""
    id_length: int = 0
    """Characters of a call's id, where the template insists on a number."""

    def call_id(self) -> str:
        """A new id of a call."""
        if self.id_length:
            return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(self.id_length))
        return f"call_{secrets.token_hex(12)}"

    def write(self, calls: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
        """Calls, each a name and its arguments, as the model would write them."""
        written = [
            f"{self.open}{name}{self.middle}{json.dumps(arguments, ensure_ascii=False)}{self.close}"
            for name, arguments in calls
        ]
        return self.begin + self.between.join(written) + self.end

    def markers(self, added: Mapping[str, int]) -> dict[str, int]:
        """Those of a tokenizer's added tokens that this format writes, by their text."""
        frame = "\0".join((self.begin, self.open, self.middle, self.close, self.between, self.end))
        return {text: token for text, token in added.items() if text in frame}


HERMES = ToolFormat(
    name="hermes",
    trigger="<tool_call>",
    open='<tool_call>\n{"name": "',
    middle='", "arguments": ',
    close="}\n</tool_call>",
    between="\n",
)
GENERIC = replace(HERMES, name="generic", shown_by="prompt")
LLAMA = ToolFormat(
    name="llama",
    trigger="{",
    open='{"name": "',
    middle='", "parameters": ',
    close="}",
    at_start=True,
    parallel=False,  # its template refuses a conversation with more than one at once
)
MISTRAL = ToolFormat(
    name="mistral",
    trigger="[TOOL_CALLS]",
    begin="[TOOL_CALLS][",
    open='{"name": "',
    middle='", "arguments": ',
    close="}",
    between=", ",
    end="]",
    id_length=9,
)
MISTRAL_SPACED = replace(MISTRAL, name="mistral, spaced", begin="[TOOL_CALLS] [")
MISTRAL_ARGS = ToolFormat(
    name="mistral, args",
    trigger="[TOOL_CALLS]",
    open="[TOOL_CALLS]",
    middle="[ARGS]",
    close="",
    header=r"(?P<name>[a-zA-Z0-9_-]+)\s*\[ARGS\]\s*(?=\{)",
    id_length=9,
)
GRANITE = ToolFormat(
    name="granite",
    trigger="<|tool_call|>",
    begin="<|tool_call|>[",
    open='{"name": "',
    middle='", "arguments": ',
    close="}",
    between=", ",
    end="]",
)
PHI4 = replace(GRANITE, name="phi-4", end="]<|/tool_call|>", shown_by="system message")

# The first whose pattern the template has.
_TEMPLATES = (
    (r"\[CALL_ID\]|<function=|<arg_key>", GENERIC),  # written otherwise than any format here
    (r"\[ARGS\]", MISTRAL_ARGS),
    (r"\[TOOL_CALLS\] \[", MISTRAL_SPACED),
    (r"\[TOOL_CALLS\]", MISTRAL),
    (r"<tool_call>", HERMES),
    (r"<\|tool_call\|>", GRANITE),
    (r"<\|tool\|>", PHI4),
    (r"(?s)\A(?=.*ipython)(?=.*\"parameters\")", LLAMA),
)


def format_of(template: str) -> ToolFormat:
    """The format of the model that a chat template, given as its source, belongs to."""
    if "tools" not in template:
        return GENERIC
    return next((found for pattern, found in _TEMPLATES if re.search(pattern, template)), GENERIC)


class Callable(Struct, frozen=True):
    """A tool as far as the grammar goes."""

    name: str
    schema: dict[str, Any]
    strict: bool


def grammar(
    wanted: ToolFormat,
    tools: Sequence[Callable],
    added: Mapping[str, int],
    *,
    required: bool,
    parallel: bool,
    text: str | None = None,
    visible: Sequence[int] = (),
) -> str:
    """A Lark grammar of llguidance: text or calls, only calls if `required`, one call if not `parallel`.

    `added` are the tokens that llguidance takes for one unit and not for their characters, by their text. `text` is a
    JSON schema that an answer without calls follows. `visible` are ids of `added` that free text may have.
    """

    def lark(literal: str) -> str:
        """A text as Lark writes it, its added tokens by their ids."""
        if not literal:
            return ""
        pieces = re.split(f"({'|'.join(map(re.escape, markers))})", literal) if markers else [literal]
        return " ".join(f"<[{markers[piece]}]>" if piece in markers else json.dumps(piece) for piece in pieces if piece)

    markers = wanted.markers(added)
    start = wanted.begin + wanted.open
    assert start.startswith(wanted.trigger)
    bodies = [f"{lark(each.name + wanted.middle)} %json {_schema(each)}" for each in tools]
    more = f"({lark(wanted.between + wanted.open)} call)*" if parallel and wanted.parallel else ""
    calls = f"call {more} {lark(wanted.end)}"
    rules = [f"call: tool {lark(wanted.close)}", "tool: " + "\n  | ".join(bodies)]
    if required:
        return "\n".join([f"start: {lark(start)} {calls}", *rules]) + "\n"
    rest = f"{lark(start.removeprefix(wanted.trigger))} {calls}"
    if text is not None:
        rules.append(f"text: %json {text}")
        head = lark(wanted.trigger)
    elif wanted.at_start:
        rules += ["text: OTHER?", rf"OTHER: /[^{re.escape(wanted.trigger)}\s](.|\n)*/"]
        head = lark(wanted.trigger)
    else:
        tokens = ",".join(map(str, sorted(set(visible) - set(markers.values()))))
        rules += [f"text: TEXT (<[{tokens}]> TEXT)*" if tokens else "text: TEXT", r"TEXT: /(.|\n)*/"]
        head = f"text {lark(wanted.trigger)}"
        if wanted.trigger not in markers:
            # A lazy rule ends at the first trigger: no text has one inside.
            between = f"(TEXT <[{tokens}]>)* " if tokens else ""
            rules.append(f"head[lazy]: TEXT {lark(wanted.trigger)}")
            head = f"{between}head"
    return "\n".join([f"start: text | {head} {rest}", *rules]) + "\n"


def _schema(tool: Callable) -> str:
    """Written as `json.dumps` does, which is what the templates show the models."""
    options = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": ", "lenient": not tool.strict}
    return json.dumps(tool.schema | {"x-guidance": options})
