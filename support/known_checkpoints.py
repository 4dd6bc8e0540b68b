"""Upstream's published D0 checkpoints, told apart by the start of their SHA-256."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["KnownCheckpoint", "known_checkpoint"]

_RELEASE = "https://github.com/rwightman/efficientdet-pytorch/releases/download/v0.1/"


@dataclass(frozen=True)
class KnownCheckpoint:
    """
    A published checkpoint.

    `prefix` holds the first eight digits of its SHA-256, which upstream writes into the file name; the other digits
    are not published.
    """

    architecture: str
    file_name: str
    prefix: str

    @property
    def source(self) -> str:
        """Address of the file."""
        return _RELEASE + self.file_name


#: Source: effdet 0.4.1, model_config.py, entries `url`.
_KNOWN = (
    KnownCheckpoint("tf_efficientdet_d0", "tf_efficientdet_d0_34-f153e0cf.pth", "f153e0cf"),
    KnownCheckpoint("tf_efficientdet_d0_ap", "tf_efficientdet_d0_ap-d0cdbd0a.pth", "d0cdbd0a"),
    KnownCheckpoint("efficientdet_d0", "efficientdet_d0-f3276ba8.pth", "f3276ba8"),
)


def known_checkpoint(sha256: str) -> KnownCheckpoint | None:
    """
    Find a published checkpoint by its hash.

    Examples
    --------
    >>> known_checkpoint("f3276ba8" + 56 * "0").architecture
    'efficientdet_d0'
    >>> known_checkpoint(64 * "0") is None
    True
    """
    return next((known for known in _KNOWN if sha256.startswith(known.prefix)), None)
