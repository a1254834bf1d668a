"""What secures a connection between trainer and teacher, as both sides set and read it: PEM files and tokens.

Secrets stay in files or in the environment: settings hold paths, so that what is logged, saved with a run or sent to
Weights & Biases holds no secret.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import re
import ssl
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import pydantic

from shared.config import Section
from shared.errors import ConfigError

log = logging.getLogger(__name__)

TOKEN_VARIABLE = "TEACHER_TOKEN"  # noqa: S105 - a name
"""Environment variable with bearer tokens, separated by blanks; a caller sends the first, a teacher takes any."""
SHORTEST_TOKEN = 16
"""Characters; shorter ones are guessed."""
TOKEN_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
"""What a token may be called."""


class ChannelConfig(Section):
    """How a caller knows the teacher, and proves who it is."""

    tls: bool = False
    """Encrypt, and trust the certificate authorities of this machine. Naming a file below turns it on, too."""
    ca: Path | None = None
    """PEM file of the certificate authorities that may have signed the teacher's certificate."""
    certificate: Path | None = None
    """PEM file of the caller's own certificate, for a teacher that asks for one."""
    key: Path | None = None
    """PEM file of its private key."""
    server_name: str = ""
    """Name that the teacher's certificate must hold; empty: the host of the address."""
    token_file: Path | None = None
    """File that holds a bearer token; without one, the environment's TEACHER_TOKEN is sent if it is set."""

    @pydantic.model_validator(mode="after")
    def _check(self) -> ChannelConfig:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key go together: give both or neither")
        if self.server_name and not self.is_secure:
            raise ValueError("server_name needs an encrypted channel: tls=true, or ca=FILE")
        return self

    @property
    def is_secure(self) -> bool:
        """Whether the channel is encrypted."""
        return self.tls or self.ca is not None or self.certificate is not None

    def watched(self) -> Watched:
        """The certificates' files, as they are now."""
        files = Watched(*(path for path in (self.ca, self.certificate, self.key) if path is not None))
        files.changed()
        return files


class Watched:
    """Files whose changes are noticed, by size, time and inode."""

    def __init__(self, *paths: Path) -> None:
        self._paths = paths
        self._lock = threading.Lock()
        self._seen: object = None

    def changed(self) -> bool:
        """Whether a file is another than at the last call; the first call says yes."""
        now = tuple(_state(path) for path in self._paths)
        with self._lock:
            before, self._seen = self._seen, now
        return before != now


class Token(NamedTuple):
    """A secret and whose it is.

    Attributes:
        secret: printable ASCII without blanks.
        name: empty if it has none.
    """

    secret: str
    name: str = ""


class Tokens:
    """Bearer tokens of a file, reread when it changes, or else of the environment.

    In a file all of them have a name (`name: token`) or none has; several may have the same.
    """

    def __init__(self, path: Path | None, environment: Mapping[str, str] = os.environ) -> None:
        """Reads them.

        Raises:
            ConfigError: the file cannot be read, holds none or a short one; or so does the variable.
        """
        self._path = path
        self._watched = Watched(*([] if path is None else [path]))
        self._watched.changed()
        self._tokens: tuple[Token, ...]
        if path is not None:
            self._tokens = _read_tokens(path)
        else:
            tokens = [Token(secret) for secret in environment.get(TOKEN_VARIABLE, "").split()]
            self._tokens = _checked(tokens, TOKEN_VARIABLE)

    def __bool__(self) -> bool:
        """Whether there are any: a file always has some."""
        return bool(self._tokens)

    @property
    def first(self) -> str:
        """What a caller sends."""
        return self._current()[0].secret

    @property
    def names(self) -> frozenset[str]:
        """Whose they are; none if they have no names."""
        return frozenset(token.name for token in self._current() if token.name)

    def name_of(self, secret: str) -> str | None:
        """Whose token this is, "" if it has no name, None if it is none of them; takes as long whichever it is, and
        whether it is."""
        digest = hashlib.sha256(secret.encode(errors="surrogatepass")).digest()
        found: str | None = None
        for known in self._current():
            is_it = hmac.compare_digest(hashlib.sha256(known.secret.encode()).digest(), digest)
            found = known.name if is_it else found
        return found

    def holds(self, secret: str) -> bool:
        """Whether a token is one of them; takes as long as `name_of`."""
        return self.name_of(secret) is not None

    def _current(self) -> tuple[Token, ...]:
        if self._path is not None and self._watched.changed():
            try:
                fresh = _read_tokens(self._path)
                if bool(fresh[0].name) != bool(self._tokens[0].name):
                    raise ConfigError(f"{self._path}: tokens get names, or lose them, when the teacher is restarted")
                self._tokens = fresh
                log.info("read %d tokens from %s again", len(self._tokens), self._path)
            except ConfigError as error:
                log.error("%s; the tokens read before stay in force", error)
        return self._tokens


def read_pem(path: Path, setting: str) -> bytes:
    """The content of a PEM file.

    Raises:
        ConfigError: it cannot be read, or is no PEM file; names the setting.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{setting}: cannot read {path}: {error.strerror}") from None
    if b"-----BEGIN " not in content:
        raise ConfigError(f"{setting}: {path} is not a PEM file")
    return content


def check_pair(certificate: Path, key: Path, setting: str) -> None:
    """Looks at a certificate and its key as a TLS library would.

    Raises:
        ConfigError: one of them is damaged, encrypted, or of another pair.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(certificate, key, password=lambda: "")
    except (ssl.SSLError, OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or str(error)
        raise ConfigError(
            f"{setting}: {certificate} and {key} are no certificate and its unencrypted key: {reason}"
        ) from None


def _read_tokens(path: Path) -> tuple[Token, ...]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the tokens in {path}: {getattr(error, 'strerror', None) or error}") from None
    entries = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    tokens = _checked([_token(entry) for entry in entries], str(path))
    if not tokens:
        raise ConfigError(f"{path} holds no token; write one a line")
    return tokens


def _token(entry: str) -> Token:
    """A line: a token, which has no blanks, or a name, a colon, blanks and a token."""
    name, colon, secret = entry.partition(": ")
    return Token(secret.strip(), name.strip()) if colon else Token(entry)


def _checked(tokens: list[Token], where: str) -> tuple[Token, ...]:
    """Complains without showing them."""
    names: dict[str, str] = {}
    for number, (secret, name) in enumerate(tokens, start=1):
        if name and TOKEN_NAME.fullmatch(name) is None:
            raise ConfigError(f"{where}: the name of token {number} is not 1 to 64 letters, digits, _ or -")
        if len(secret) < SHORTEST_TOKEN:
            raise ConfigError(f"{where}: token {number} has {len(secret)} characters; {SHORTEST_TOKEN} are the least")
        if not all("!" <= character <= "~" for character in secret):
            raise ConfigError(f"{where}: token {number} has characters other than printable ASCII")
        if names.setdefault(secret, name) != name:
            raise ConfigError(f"{where}: token {number} is the same as an earlier one of {names[secret]!r}")
    if len({bool(name) for name in names.values()}) > 1:
        raise ConfigError(f"{where}: some tokens have a name and others have none; write `name: token` for all or none")
    return tuple(tokens)


def _state(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
