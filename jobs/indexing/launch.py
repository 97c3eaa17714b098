"""How a run was started: what a person needs to understand the run later, or to repeat it."""

import os
import platform
import re
import socket
import sys
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from pydantic import BaseModel

from sttm.models.checkpoint import Checkpoint
from sttm.urls import redact_url

_PACKAGES = ("torch", "transformers", "ray", "sttm", "decord", "av")
_URL_IN_TEXT = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"]+")
# Up to the `@`: a password may hold slashes, but `host:8080/` is no password, and a path may hold an `@`.
_USER_INFO = re.compile(r"://(?:[^/@]*:(?!\d+/)[^@]*|[^/]*)@")


@dataclass(frozen=True)
class Launch:
    """How a run was started.

    Attributes:
        command: the program and its arguments.
        folder: the folder it was started in, which relative paths of `command` refer to.
        settings: every setting in force, by section.
        corpus: where the videos are.
        store: where the artifacts go.
        model: name, commit and digests of the checkpoint.
        host: name of the machine that the driver runs on.
        versions: versions of Python and the main packages; None where a package is not installed, such as `sttm` where
            a cluster runs an uploaded working folder.
        started_at: time of the start, in UTC by the clock of `host`.
    """

    command: list[str]
    folder: str
    settings: dict[str, Any]
    corpus: str
    store: str
    model: dict[str, Any]
    host: str
    versions: dict[str, str | None]
    started_at: str

    @staticmethod
    def now(settings: BaseModel, corpus: str, store: str, checkpoint: Checkpoint) -> "Launch":
        """Describe this process and what it was asked to do."""
        versions: dict[str, str | None] = {"python": platform.python_version()}
        return Launch(
            command=sys.orig_argv,
            folder=os.getcwd(),
            settings=settings.model_dump(mode="json"),
            corpus=corpus,
            store=store,
            model={"name": checkpoint.name, "commit": checkpoint.commit, "digests": checkpoint.digests},
            host=socket.gethostname(),
            versions=versions | {name: _version(name) for name in _PACKAGES},
            started_at=datetime.now(UTC).isoformat(),
        )

    def as_record(self) -> dict[str, Any]:
        """All attributes as JSON values, without any user name, password or query of a URL."""
        places = {"corpus": _redacted_url(self.corpus), "store": _redacted_url(self.store)}
        record = {**asdict(self), **places, "command": [_redacted_argument(word) for word in self.command]}
        return {name: redacted(value) for name, value in record.items()}


def redacted(value: Any) -> Any:
    """The same JSON value with every URL in its texts cut to what is no secret."""
    if isinstance(value, str):
        return _URL_IN_TEXT.sub(lambda url: _redacted_url(url[0]), value)
    if isinstance(value, dict):
        return {key: redacted(inner) for key, inner in value.items()}
    return [redacted(inner) for inner in value] if isinstance(value, list | tuple) else value


def _redacted_argument(word: str) -> str:
    """One word of a command line; what follows `--option=` or `section.key=` may be a URL with spaces in it."""
    name, url = re.fullmatch(r"([\w.-]+=)?(.*)", word, re.DOTALL).groups(default="")  # type: ignore[union-attr]
    return name + (_redacted_url(url) if "://" in url else url)


def _redacted_url(url: str) -> str:
    return redact_url(_USER_INFO.sub("://", url))


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
