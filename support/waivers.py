"""Waivers: clauses whose rejection somebody answers for until a day. They are shown, and never accepted."""

from __future__ import annotations

import datetime as dt
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from support.errors import UsageError
from support.plain_files import read_plain
from support.spec import Text
from support.verdict import ClauseVerdict

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["Waiver", "load_waivers", "waive"]

#: Bytes of a file we agree to read; one waiver takes about 200.
MAX_BYTES = 2**20


def _not_a_number(value: object) -> object:
    # It would be taken for seconds since 1970.
    if isinstance(value, (int, float)):
        raise ValueError("Input should be a valid date")
    return value


class Waiver(BaseModel):
    """
    A clause whose rejection somebody answers for until a day.

    Parameters
    ----------
    clause : str
        Name of the clause.
    batch : int, optional
        Batch size; without it the waiver is for every batch size of the clause.
    reason, owner : str
        Why it is waived, and who answers for it.
    expires : date
        Last day on which it holds, by the calendar of UTC.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    clause: Text
    # Strictly a number: true would be taken for 1.
    batch: Annotated[int, Field(gt=0, strict=True)] | None = None
    reason: Text
    owner: Text
    expires: Annotated[dt.date, BeforeValidator(_not_a_number)]

    def covers(self, clause: str, batch: int | None) -> bool:
        """Whether it is for a clause at a batch size."""
        return self.clause == clause and self.batch in (None, batch)

    def __str__(self) -> str:
        at = "" if self.batch is None else f" at batch {self.batch}"
        return f"{self.clause}{at}, waived by {self.owner} until {self.expires}: {self.reason}"


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    waiver: Annotated[tuple[Waiver, ...], Field(min_length=1)]


def load_waivers(path: Path, required: Collection[tuple[str, int | None]], today: dt.date) -> tuple[Waiver, ...]:
    """
    Read a file of waivers.

    Parameters
    ----------
    path : Path
        TOML with a table ``[[waiver]]`` for each.
    required : collection of (clause name, batch size or None)
        What the run has to measure.
    today : date
        By the calendar of UTC.

    Raises
    ------
    UsageError
        If the file is missing or malformed; if a waiver has expired, is for nothing that the run measures, or is there
        twice.
    """
    waivers = _read(path)
    for place, waiver in enumerate(waivers):
        _check(path, waiver, required, today)
        if any(waiver.covers(other.clause, other.batch) for other in (*waivers[:place], *waivers[place + 1 :])):
            raise UsageError(
                f"--waivers={path}: one of several for the same: {waiver}", required="one for a clause and batch size"
            )
    return waivers


def _read(path: Path) -> tuple[Waiver, ...]:
    required = "a table [[waiver]] with clause, reason, owner, expires and, if it is for one batch size, batch"
    try:
        text = read_plain(path, MAX_BYTES)
        return _File.model_validate(tomllib.loads(text.decode())).waiver
    except OSError as error:
        raise UsageError(f"--waivers={path}: {error.strerror}", required="a TOML file") from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise UsageError(f"--waivers={path}: {where}: {first['msg']}", required=required) from None
    except (ValueError, RecursionError) as error:  # of TOML, and of UTF-8
        raise UsageError(f"--waivers={path}: {error}", required=required) from None


def _check(path: Path, waiver: Waiver, required: Collection[tuple[str, int | None]], today: dt.date) -> None:
    if waiver.expires < today:
        raise UsageError(
            f"--waivers={path}: expired: {waiver}",
            required=f"a date from {today} on",
            remedy="decide anew or remove it",
        )
    if not any(waiver.covers(*key) for key in required):
        names = ", ".join(dict.fromkeys(name for name, _ in required))
        raise UsageError(
            f"--waivers={path}: for nothing that this run measures: {waiver}",
            required=f"one of {names}, at a batch size of the run",
            remedy="correct or remove it",
        )


def waive(verdict: ClauseVerdict, waivers: Sequence[Waiver]) -> ClauseVerdict:
    """Return a rejected clause that somebody answers for as undetermined, ``waived``; any other as it is."""
    found = [waiver for waiver in waivers if waiver.covers(verdict.clause, verdict.batch)]
    if not found or verdict.word != "rejected" or verdict.informative:
        return verdict
    findings = (f"waived by {found[0].owner} until {found[0].expires}: {found[0].reason}", *verdict.findings)
    return verdict.model_copy(update={"word": "undetermined", "reason": "waived", "findings": findings})
