"""API keys from a TOML file, of which only digests are stored:

[[key]]
name = "ops"
sha256 = "…"                  # hex digest of the key
admin = true                  # may manage adapters

[[key]]
name = "customer-7"
sha256 = "…"
adapters = ["travel", "tone"] # and nothing else; without this line everything
requests_per_minute = 60      # without these lines as many as there is room for
tokens_per_minute = 100000    # of prompts and answers together
class = "free"                # by which metrics tell keys apart; "default" without this line
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import secrets
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct, field

from loraplex.server.bundle import Name
from loraplex.server.errors import KeysInvalid, Unauthorized
from loraplex.server.limits import Rate

logger = logging.getLogger("loraplex.keys")

PREFIX = "lpx-"
MAX_CLASSES = 16
"""Each makes series of its own in the metrics."""
PerMinute = Annotated[int, Meta(ge=1, le=10**12)]


class Key(Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    sha256: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
    admin: bool = False
    adapters: frozenset[Name] | None = None
    requests_per_minute: PerMinute | None = None
    tokens_per_minute: PerMinute | None = None
    service_class: Name = field(default="default", name="class")

    def may_use(self, model: str) -> bool:
        return self.adapters is None or model in self.adapters


class _File(Struct, frozen=True, forbid_unknown_fields=True):
    keys: list[Key] = field(default_factory=list, name="key")


def new_key() -> str:
    """A random key of 256 bits."""
    return PREFIX + secrets.token_urlsafe(32)


def digest(key: str) -> str:
    """What the file holds of a key. A plain hash will do: keys are random, so there is nothing to guess."""
    return hashlib.sha256(key.encode()).hexdigest()


def entry(key: Key) -> str:
    """A key as the file has it."""
    lines = ["[[key]]", f"name = {_text(key.name)}", f"sha256 = {_text(key.sha256)}"]
    if key.admin:
        lines.append("admin = true")
    if key.adapters is not None:
        lines.append(f"adapters = [{', '.join(map(_text, sorted(key.adapters)))}]")
    if key.requests_per_minute is not None:
        lines.append(f"requests_per_minute = {key.requests_per_minute}")
    if key.tokens_per_minute is not None:
        lines.append(f"tokens_per_minute = {key.tokens_per_minute}")
    if key.service_class != "default":
        lines.append(f"class = {_text(key.service_class)}")
    return "\n".join(lines)


def check_entry(lines: str) -> None:
    """Whether a server would take this entry. Raises KeysInvalid."""
    try:
        msgspec.toml.decode(lines, type=_File)
    except msgspec.DecodeError as error:
        raise KeysInvalid(f"no server would take this key: {error}") from None


def _text(value: str) -> str:
    return json.dumps(value)  # a JSON string is a TOML string


class Keys:
    """The keys of a file, read again when it changes."""

    def __init__(self, path: Path) -> None:
        """Raises KeysInvalid."""
        self._path = path
        self._stamp = self._stat()
        self._keys = self._read()
        self._rates: dict[str, Rate] = {}

    @property
    def classes(self) -> set[str]:
        """Every class that a key has."""
        return {key.service_class for key in self._keys}

    def rate(self, key: Key) -> Rate:
        """What the key has left of its rate."""
        limits = (key.requests_per_minute, key.tokens_per_minute)
        rate = self._rates.get(key.name)
        if rate is None or not rate.matches(*limits):
            rate = self._rates[key.name] = Rate(*limits)
        return rate

    def authenticate(self, authorization: str) -> Key:
        """The key of an Authorization header. Raises Unauthorized."""
        self._reload()
        scheme, _, given = authorization.partition(" ")
        if scheme.lower() != "bearer" or not given:
            raise Unauthorized("You didn't provide an API key: send it in the header Authorization: Bearer KEY")
        presented = digest(given.strip())
        # Every key is compared, in constant time, so that the time tells nothing.
        found = [key for key in self._keys if hmac.compare_digest(key.sha256, presented)]
        if not found:
            raise Unauthorized("Incorrect API key provided")
        return found[0]

    def _reload(self) -> None:
        stamp = self._stat()
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._keys = self._read()
            names = {key.name for key in self._keys}
            self._rates = {name: rate for name, rate in self._rates.items() if name in names}
        except KeysInvalid as error:
            logger.error("the keys stay as they were: %s", error.message)
        else:
            logger.info("%d keys read from %s", len(self._keys), self._path)

    def _stat(self) -> tuple[int, int, int] | None:
        """What changes with the file; None while there is none."""
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino

    def _read(self) -> list[Key]:
        try:
            keys = msgspec.toml.decode(self._path.read_bytes(), type=_File).keys
        except OSError as error:
            raise KeysInvalid(f"{self._path} cannot be read: {error.strerror}") from None
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise KeysInvalid(f"{self._path}: {error}") from None
        if not keys:
            raise KeysInvalid(f"{self._path} has no [[key]]: nobody could use this server")
        names = [key.name for key in keys]
        if len(set(names)) < len(names) or len({key.sha256 for key in keys}) < len(keys):
            raise KeysInvalid(f"{self._path}: two keys have the same name or the same digest")
        if len({key.service_class for key in keys}) > MAX_CLASSES:
            raise KeysInvalid(f"{self._path}: more than {MAX_CLASSES} classes")
        return keys
