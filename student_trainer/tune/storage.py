"""Where studies are: SQLite, PostgreSQL, a journal file, or Optuna's gRPC proxy in front of one of them."""

from __future__ import annotations

import os
import re
import time
import warnings
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import optuna
from optuna.storages import BaseStorage, GrpcStorageProxy, JournalStorage, RDBStorage, get_storage
from optuna.storages.journal import JournalFileBackend
from sqlalchemy import URL, make_url
from sqlalchemy.exc import DBAPIError, IntegrityError

from shared.address import Address
from shared.errors import ConfigError
from student_trainer.tune.config import StorageConfig

BUSY_SECONDS = 60
"""How long a process waits for another one's SQLite transaction."""
TABLE_ATTEMPTS = 4
EXAMPLES = "sqlite:///FILE, postgresql+psycopg://USER@HOST/NAME, journal:FILE or grpc://HOST:PORT"


def url_of(config: StorageConfig, out: Path) -> str:
    """The storage's URL without secrets put in: as it may be shown and saved."""
    return config.url or sqlite_url(out / "optuna.db")


def sqlite_url(file: Path) -> str:
    """The URL of an SQLite file, whatever its name is.

    Names of other than letters, digits and `/_.-~` become a `file:` URI with percent signs, which SQLite decodes
    itself: versions of SQLAlchemy differ in what they decode.
    """
    path = str(file.resolve())
    if quote(path) == path:
        url = URL.create("sqlite", database=path)
    else:
        url = URL.create("sqlite", database=f"file:{quote(path)}", query={"uri": "true"})
    return url.render_as_string(hide_password=False)


def is_there(config: StorageConfig, out: Path) -> bool:
    """Whether the file of the studies is there; of a server, which would have to be asked, it is not known: False."""
    kind, _, rest = (_with_environment(config.url) if config.url else "").partition(":")
    match kind:
        case "":
            return (out / "optuna.db").exists()
        case "sqlite":
            return _sqlite_file(rest).exists()
        case "journal":
            return Path(rest).exists()
    return False


def open_storage(config: StorageConfig, out: Path) -> BaseStorage:
    """Connects, and makes what is not there yet. What a database holds is cached: all access must go through this.

    Raises:
        ConfigError: nobody knows such a URL, or nobody answers there; the message has no password.
    """
    shown = url_of(config, out)
    url = _with_environment(shown) if config.url else shown  # the name of OUT has no variables
    kind, _, rest = url.partition(":")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            match kind:
                case "sqlite":
                    file = _sqlite_file(rest) if config.url else out / "optuna.db"
                    file.parent.mkdir(parents=True, exist_ok=True)
                    return get_storage(_open_database(sqlite_url(file), {"connect_args": {"timeout": BUSY_SECONDS}}))
                case "journal":
                    Path(rest).parent.mkdir(parents=True, exist_ok=True)
                    return JournalStorage(JournalFileBackend(rest))
                case "grpc":
                    return _open_proxy(rest)
                case "postgresql" | "postgresql+psycopg" | "postgresql+psycopg2" | "mysql" | "mysql+pymysql":
                    braces = url.replace("{", "{{").replace("}", "}}")  # Optuna fills in a template
                    return get_storage(_open_database(braces, {"pool_pre_ping": True}))
    except ConfigError:
        raise
    except Exception as error:  # each of them has errors of its own
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(f"storage.url {shown}: cannot be opened: {_without_password(reason, url)}") from None
    raise ConfigError(f"storage.url {shown}: give {EXAMPLES}")


def _sqlite_file(rest: str) -> Path:
    """The file of sqlite:///FILE, whose name is taken as it is, or of what `sqlite_url` makes.

    Raises:
        ConfigError: there is none, or it is in memory, where workers do not find it.
    """
    text = rest.removeprefix("///")
    uri = re.fullmatch(r"file(?::|%3A)(.+)\?uri=true", text, re.IGNORECASE)
    if uri is not None:
        database = str(make_url(f"sqlite:{rest}").database)
        text = unquote(database.removeprefix("file:"))
    if rest == text or text in ("", ":memory:"):
        raise ConfigError(f"storage.url sqlite:{rest}: expected sqlite:///FILE")
    return Path(text)


def _open_database(url: str, engine: dict[str, Any]) -> RDBStorage:
    """Connects; of several processes that find no tables at once, one makes them and the others come again."""
    for attempt in range(1, TABLE_ATTEMPTS):
        try:
            return RDBStorage(url, engine_kwargs=engine)
        except DBAPIError as error:
            is_there = isinstance(error, IntegrityError) or "already exists" in str(error.orig).lower()
            if not is_there:
                raise
            time.sleep(attempt)
    return RDBStorage(url, engine_kwargs=engine)


def _open_proxy(rest: str) -> GrpcStorageProxy:
    try:
        address = Address.parse(rest.removeprefix("//"))
        if not address.port:
            raise ValueError("port 0")
    except ValueError as error:
        raise ConfigError(f"storage.url grpc:{rest}: expected grpc://HOST:PORT ({error})") from None
    proxy = GrpcStorageProxy(host=str(address).rpartition(":")[0], port=address.port)
    proxy.wait_server_ready(timeout=BUSY_SECONDS)
    return proxy


def _with_environment(url: str) -> str:
    """The URL with $NAME and ${NAME} replaced; $$ is a dollar sign."""

    def value(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        if name is None:
            return "$"
        if name not in os.environ:
            raise ConfigError(f"storage.url: the environment has no {name}; write $$ for a dollar sign")
        return os.environ[name]

    return re.sub(r"\$(?:\$|\{(\w+)\}|(\w+))", value, url)


def _without_password(text: str, url: str) -> str:
    if found := re.match(r"[^:]+://[^:@/]*:([^@]+)@", url):
        text = text.replace(found[1], "***")
    return text
