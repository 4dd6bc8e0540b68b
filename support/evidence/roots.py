"""Named roots: how paths, and whatever else tells whose machine it was, are kept out of the evidence."""

from __future__ import annotations

import getpass
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import JsonValue

__all__ = ["Roots", "roots_of_this_host"]

#: Where a path led that is below none of the roots.
ELSEWHERE = "{elsewhere}"
#: Places that are the same on every machine, and so may be told.
_COMMON = ("/dev/", "/etc/", "/lib/", "/opt/", "/proc/", "/sys/", "/usr/")
_CREDENTIALS = re.compile(r"://[^\s/@]+@")
_SECRET = re.compile(r"(?i)\b([\w-]*(?:token|password|passwd|secret|api[-_]?key)[\w-]*=)\S+")
_NAME = r"""[^\s/'"`<>|:;,()\[\]{}]"""
#: A URL, whose path is nobody's, or an absolute path of at least two parts: "images/s" and "+/-1" are no paths.
_PATH = re.compile(rf"(?!file:)\b[A-Za-z][A-Za-z+.-]*://\S+|(?<![\w.}}-])/+(?:{_NAME}+/+)+{_NAME}*")
_HOMES = re.compile(rf"/(?:home|Users)/{_NAME}+")
#: Says nothing about anybody, and is a word of many messages.
_NOBODY = frozenset({"", "root"})


@dataclass(frozen=True)
class Roots:
    """
    Folders by the names they have in the evidence, and words that must not appear in it.

    Parameters
    ----------
    folders : mapping of str to Path
        For example ``{"checkout": Path("/srv/suite")}``; a path below it becomes ``{checkout}/…``.
    home : Path, optional
        Home folder of the user, which is told as ``{elsewhere}``.
    words : mapping of str to str
        Names of host and user, and what stands in their place.

    Examples
    --------
    >>> roots = Roots({"coco": Path("/data/coco")}, words={"alice": "{user}"})
    >>> roots.hide("/data/coco/val2017 is not a folder; alice asked for /srv/share/d0.pth at 9 images/s")
    '{coco}/val2017 is not a folder; {user} asked for {elsewhere}/d0.pth at 9 images/s'
    """

    folders: Mapping[str, Path]
    home: Path | None = None
    words: Mapping[str, str] = field(default_factory=dict)

    def hide(self, text: str) -> str:
        """Replace every path by one below a named root, and names and credentials by what stands in their place."""
        for folder, name in self._by_length():
            text = re.sub(rf"(?<![\w.}}-]){re.escape(folder)}(?![\w.-])", name, text)
        text = _PATH.sub(_told, _HOMES.sub(ELSEWHERE, text))
        text = _SECRET.sub(r"\1{secret}", _CREDENTIALS.sub("://{secret}@", text))
        for word, instead in self.words.items():
            text = re.sub(rf"(?<![\w{{]){re.escape(word)}(?![\w}}])", instead, text)
        return text

    def hide_all(self, value: JsonValue) -> JsonValue:
        """Do the same with every string in a JSON value, keys too."""
        if isinstance(value, str):
            return self.hide(value)
        if isinstance(value, list):
            return [self.hide_all(item) for item in value]
        if isinstance(value, dict):
            return {self.hide(key): self.hide_all(item) for key, item in value.items()}
        return value

    def _by_length(self) -> list[tuple[str, str]]:
        # The inner of two nested folders first; as typed and with links followed, since messages have either.
        named = [(path, f"{{{name}}}") for name, path in self.folders.items()]
        named += [(self.home, ELSEWHERE)] if self.home else []
        both = [(str(form), name) for path, name in named for form in (path.absolute(), path.resolve())]
        return sorted(((folder, name) for folder, name in both if folder != "/"), key=lambda pair: -len(pair[0]))


def _told(match: re.Match[str]) -> str:
    path = match.group()
    if not path.startswith("/") or path.startswith(_COMMON):
        return path
    return f"{ELSEWHERE}/{path.rstrip('/').rpartition('/')[2]}"


def roots_of_this_host(**folders: Path | None) -> Roots:
    """
    Make the roots of a run on this host, hiding its name and that of the user.

    Parameters
    ----------
    folders : Path or None
        Named roots, such as ``checkout``, ``artifacts``, ``coco``; those that are None do not exist.
    """
    host = platform.node()
    words = dict.fromkeys((host, host.partition(".")[0]), "{host}") | {_user(): "{user}"}
    return Roots(
        {name: path for name, path in folders.items() if path is not None},
        home=_home(),
        words={word: instead for word, instead in words.items() if word not in _NOBODY},
    )


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # an id without an entry, as in containers
        return ""


def _home() -> Path | None:
    try:
        return Path.home()
    except RuntimeError:
        return None
