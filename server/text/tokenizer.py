"""The base's tokenizer and chat template, read from the files that stand beside the graph."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from loraplex.server.errors import BundleInvalid
from loraplex.server.machine import usable_cores
from loraplex.server.text.foreign_template import LONGEST_SOURCE, ForeignTemplate, TemplateProcess
from loraplex.server.text.template import ChatTemplate

SHORT = 512
"""Characters that are encoded in less time than a thread is woken."""
SPECIAL_TOKENS = ("bos_token", "eos_token", "pad_token", "unk_token")


class Text:
    """Text in, token ids out."""

    def __init__(self, folder: Path) -> None:
        """Read tokenizer.json, tokenizer_config.json and chat_template.jinja. Raises BundleInvalid."""
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise BundleInvalid(f"{folder} has no tokenizer.json: build the bundle again with a fast tokenizer")
        try:
            self.tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:
            raise BundleInvalid(f"{path} cannot be read: {error}") from None
        # A tokenizer.json may cut or pad what it encodes; a server must do neither.
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        added = self.tokenizer.get_added_tokens_decoder()
        self.special = frozenset(token for token, each in added.items() if each.special)
        """Ids without text, unless a request asks for it."""
        self.units = {
            each.content: token
            for token, each in added.items()
            if each.special or (each.content.startswith("<") and each.content.endswith(">"))
        }
        """The tokens that llguidance takes for one unit and not for their characters
        (toktrie_hf_tokenizers/src/lib.rs), by their text."""
        config = _read_json(folder / "tokenizer_config.json")
        self._special_tokens = {name: text for name in SPECIAL_TOKENS if (text := _text(config.get(name)))}
        source = _chat_template(folder, config)
        # tokenizers has a thread for each text otherwise, and 64 long ones keep the event loop from its core for 0.1 s.
        self._turns = asyncio.Semaphore(usable_cores())
        self.template = None if source is None else ChatTemplate(source, self._special_tokens)
        self._process = TemplateProcess()

    async def adapter_template(self, path: Path) -> ForeignTemplate:
        """An adapter's own template. Raises BundleInvalid."""
        source = await asyncio.to_thread(_read_template, path)
        return await self._process.open(source, self._special_tokens)

    async def close(self) -> None:
        """End the process that renders the templates of adapters."""
        await self._process.close()

    async def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Token ids; long texts are encoded without blocking the event loop."""
        if len(text) <= SHORT:
            return list(self.tokenizer.encode(text, add_special_tokens=add_special_tokens).ids)
        async with self._turns:
            encoding = await self.tokenizer.async_encode(text, add_special_tokens=add_special_tokens)
        return list(encoding.ids)


def _chat_template(folder: Path, config: dict[str, Any]) -> str | None:
    path = folder / "chat_template.jinja"
    if path.is_file():
        try:
            return path.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise BundleInvalid(f"{path} cannot be read: {error}") from None
    found = config.get("chat_template")
    if isinstance(found, list):  # several by name: https://huggingface.co/docs/transformers/chat_templating
        found = next((entry["template"] for entry in found if entry.get("name") == "default"), None)
    return found if isinstance(found, str) else None


def _read_template(path: Path) -> str:
    """Raises BundleInvalid."""
    try:
        if path.stat().st_size > 4 * LONGEST_SOURCE:
            raise BundleInvalid(f"the chat template {path.name} has more than {LONGEST_SOURCE} characters")
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BundleInvalid(f"the chat template {path.name} cannot be read: {error}") from None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise BundleInvalid(f"{path} cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise BundleInvalid(f"{path} is not a JSON object")
    return content


def _text(token: object) -> str | None:
    """A special token stands in the file as a string or as an object with its content."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None
