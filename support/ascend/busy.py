"""What ``--allow-busy`` let pass in a session, told by whichever worker met it to the verdict."""

from __future__ import annotations

from pathlib import Path

__all__ = ["busy_notes", "note_busy"]

NAME = "busy.txt"


def note_busy(session_folder: Path, found: str) -> None:
    """Note that a device was in use."""
    session_folder.mkdir(parents=True, exist_ok=True)
    with (session_folder / NAME).open("a", encoding="utf-8") as file:
        file.write(f"{found}\n")


def busy_notes(session_folder: Path) -> tuple[str, ...]:
    """Return what was noted in a session, each once."""
    path = session_folder / NAME
    return tuple(dict.fromkeys(path.read_text(encoding="utf-8").splitlines())) if path.is_file() else ()
