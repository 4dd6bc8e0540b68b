"""
The checkpoint: read without running any code in it, identified by its hash, then by its keys.

The file is read once, so the hash is that of the very bytes that were loaded.
"""

from __future__ import annotations

import hashlib
import io
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from support import spec
from support.errors import ContractViolationError, NoDataError, SpecError, ToolError, WrongDataError
from support.known_checkpoints import known_checkpoint
from support.plain_files import read_plain

if TYPE_CHECKING:
    import torch

__all__ = ["Checkpoint", "build_model", "key_violations", "load_checkpoint"]

#: Where training scripts put the weights, best first: like timm, the moving average is preferred where there is one.
_WRAPPERS = ("state_dict_ema", "model_ema", "ema", "state_dict", "model", "module")

#: Written before every key by torch's DistributedDataParallel and torch.compile.
_PREFIXES = ("module.", "_orig_mod.")

_UNKNOWN = "unknown"

#: Bytes of a checkpoint we agree to read, and to unpack; that of a whole training of D7x has about 1 GB.
_MOST_BYTES = 4 * 2**30


@dataclass(frozen=True)
class Checkpoint:
    """
    Weights read from a file.

    Parameters
    ----------
    path : Path
        The file.
    sha256 : str
        Hash of the whole file.
    architecture : str
        Name of the effdet architecture that has exactly these keys, or ``unknown``.
    known_as : str
        What the hash alone tells.
    tensors : mapping of str to torch.Tensor
        The state dict, on the CPU.
    layout : str
        Where in the file the state dict was and what was done to its keys.
    """

    path: Path
    sha256: str
    architecture: str
    known_as: str
    tensors: Mapping[str, torch.Tensor]
    layout: str


def load_checkpoint(path: Path, model: spec.Model, pins: spec.Checkpoint) -> Checkpoint:
    """
    Read and identify a checkpoint; what its tensors lack is told by `key_violations`.

    Plain state dicts, wrapped ones, moving averages and safetensors are understood, whatever the file is called.

    Raises
    ------
    NoDataError
        If there is no such file.
    WrongDataError
        If the file has another hash than the one pinned, is damaged, or holds anything but weights.
    SpecError
        If effdet does not know the spec's architecture, or has other levels or anchors for it.
    ToolError
        If torch, effdet or safetensors is missing.
    """
    data = _read(path)
    digest = hashlib.sha256(data).hexdigest()
    if pins.sha256 not in (None, digest):
        raise WrongDataError(
            f"{path} has SHA-256 {digest}",
            required=f"{pins.sha256}, pinned by checkpoint.sha256 of the spec ({pins.source})",
            remedy="give the pinned file with --checkpoint=FILE, or a spec for this one with --spec=PATH",
        )
    content = _safetensors(path, data) if _is_safetensors(data) else _torch_content(path, data)
    tensors, layout = _state_dict(path, content)
    return Checkpoint(path, digest, _identified(tensors, model), _known_as(digest, pins), tensors, layout)


def key_violations(checkpoint: Checkpoint, model: spec.Model) -> list[str]:
    """
    List everything that keeps a checkpoint from being the weights of the spec's architecture.

    Parameters
    ----------
    checkpoint : Checkpoint
        As loaded.
    model : spec.Model
        The network required.

    Returns
    -------
    sentences : list of str
        Worst first: another model, missing keys, surplus keys, wrong shapes or types, values that are not finite.
    """
    expected, found = _expected(model), checkpoint.tensors
    shared = [name for name in expected if name in found]
    return [
        *_other_model(checkpoint, model),
        *(f"missing {name} {_shape(expected[name])}" for name in expected if name not in found),
        *(f"surplus {name} {_shape(found[name])}" for name in found if name not in expected),
        *(text for name in shared for text in _different(name, found[name], expected[name])),
        *(text for name in shared for text in _not_finite(name, found[name])),
    ]


def build_model(checkpoint: Checkpoint, model: spec.Model) -> torch.nn.Module:
    """
    Build the network and load the weights strictly.

    Returns
    -------
    network : effdet.EfficientDet
        In evaluation mode, on the CPU. It takes (B, 3, size, size) float32 and gives two lists, class heads
        (B, anchors x classes, side, side) and box heads (B, anchors x 4, side, side), fine to coarse.

    Raises
    ------
    ContractViolationError
        If the weights are not exactly those of the architecture; names the file and the first keys.
    """
    violations = key_violations(checkpoint, model)
    if violations:
        raise ContractViolationError(
            f"{checkpoint.path}: {'; '.join(violations[:5])} ({len(violations)} violations in all)",
            required=f"exactly the {len(_expected(model))} tensors of {model.architecture}",
            remedy="give a checkpoint of that architecture, or a spec of the checkpoint's",
        )
    network = _network(model)
    network.load_state_dict(dict(checkpoint.tensors), strict=True)
    return network.eval()


def _read(path: Path) -> bytes:
    try:
        return read_plain(path, _MOST_BYTES)
    except FileNotFoundError:
        raise NoDataError(f"there is no checkpoint {path}", remedy="--checkpoint=FILE") from None
    except OSError as error:
        raise NoDataError(f"the checkpoint {path} cannot be read: {error}", remedy="--checkpoint=FILE") from error


def _is_safetensors(data: bytes) -> bool:
    # Eight bytes with the length of the header, then the header as JSON.
    return data[8:9] == b"{" and int.from_bytes(data[:8], "little") <= len(data)


def _safetensors(path: Path, data: bytes) -> Mapping[str, Any]:
    try:
        from safetensors.torch import load
    except ImportError as error:
        raise _not_installed(error) from error
    try:
        return dict(load(data))
    except Exception as error:  # safetensors has no base class for what it raises
        raise _damaged(path, error) from error


def _torch_content(path: Path, data: bytes) -> Any:
    torch = _torch()
    _check_records(path, data)
    # Training scripts keep their options in a Namespace; making one runs no code of the file.
    from argparse import Namespace

    try:
        with torch.serialization.safe_globals([Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a warning about old formats is no fault of the file
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # what torch raises on damaged input is not bounded
        refused = re.search(r"GLOBAL (\S+)", str(error))
        if refused is None:
            raise _damaged(path, error) from error
        raise WrongDataError(
            f"{path} was refused: loading it would execute code ({refused[1]})",
            required="a file that holds tensors and plain values alone",
            remedy="save the state dict itself: torch.save(model.state_dict(), FILE)",
        ) from error


def _check_records(path: Path, data: bytes) -> None:
    # torch.load does not check the sums of a torch file, which is a zip archive, so a flipped bit would pass.
    if not data.startswith(b"PK"):
        return
    try:
        archive = zipfile.ZipFile(io.BytesIO(data))
        size = sum(entry.file_size for entry in archive.infolist())
        if size > _MOST_BYTES:
            raise ValueError(f"it unpacks to {size} bytes, {_MOST_BYTES} are the most")
        bad = archive.testzip()
    except Exception as error:  # zipfile raises whatever the damaged field leads to
        raise _damaged(path, error) from error
    if bad is not None:
        raise _damaged(path, f"the checksum of its record {bad} is wrong")


def _damaged(path: Path, why: object) -> WrongDataError:
    text = " ".join(str(why).split())[:200]
    return WrongDataError(
        f"{path} is damaged, truncated or no checkpoint: {text}",
        required="a file written by torch.save or safetensors",
        remedy="fetch it again, or save it again",
    )


def _state_dict(path: Path, content: Any) -> tuple[dict[str, torch.Tensor], str]:
    wrappers = [name for name in _WRAPPERS if isinstance(content, Mapping) and isinstance(content.get(name), Mapping)]
    state = content[wrappers[0]] if wrappers else content
    if not isinstance(state, Mapping) or not state:
        raise WrongDataError(f"{path} holds {_kind(state)}", required="a state dict: names and tensors")
    for name, value in state.items():
        if not isinstance(name, str) or not _is_plain(value):
            where = f" in {wrappers[0]}" if wrappers else ""
            raise WrongDataError(f"{path}: the entry {name!r}{where} is {_kind(value)}", required="a dense tensor")
    tensors, prefix = _without_prefix(state)
    return tensors, _layout(wrappers, prefix)


def _is_plain(value: Any) -> bool:
    torch = _torch()
    return isinstance(value, torch.Tensor) and value.layout == torch.strided and not value.is_meta


def _kind(value: Any) -> str:
    empty = "an empty " if isinstance(value, Mapping) and not value else "a "
    return f"{empty}{type(value).__name__}"


def _without_prefix(state: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], str]:
    stripped = ""
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
            stripped += prefix
    return dict(state), stripped


def _layout(wrappers: list[str], prefix: str) -> str:
    text = f"wrapped in {wrappers[0]}" if wrappers else "plain state dict"
    if wrappers[1:]:
        text += f", preferred to {', '.join(wrappers[1:])}"
    return f"{text}, prefix {prefix} removed" if prefix else text


def _identified(tensors: Mapping[str, torch.Tensor], model: spec.Model) -> str:
    names = (model.architecture, _sibling(model.architecture))
    for name in names:
        try:
            expected = _expected(model.model_copy(update={"architecture": name}))
        except SpecError:
            if name == model.architecture:
                raise
            continue
        if expected.keys() == tensors.keys():
            return name
    return _UNKNOWN


def _sibling(architecture: str) -> str:
    """Name of the network of the same size with the other padding, the likeliest mix-up."""
    plain = architecture.removeprefix("tf_")
    return plain.removesuffix("_ap") if plain != architecture else f"tf_{plain}"


def _known_as(digest: str, pins: spec.Checkpoint) -> str:
    known = known_checkpoint(digest)
    if known is not None:
        return f"{known.architecture} as published ({known.source})"
    return "the checkpoint the spec pins" if pins.sha256 == digest else "not a published checkpoint: unknown hash"


def _other_model(checkpoint: Checkpoint, model: spec.Model) -> Iterator[str]:
    known, expected = known_checkpoint(checkpoint.sha256), _expected(model)
    if checkpoint.tensors.keys() != expected.keys():
        if checkpoint.architecture not in (model.architecture, _UNKNOWN):
            yield (
                f"the keys are those of {checkpoint.architecture} ({len(checkpoint.tensors)} tensors), "
                f"the spec names {model.architecture} ({len(expected)} tensors)"
            )
    elif known is not None and known.architecture != model.architecture:
        # Siblings with equal keys still differ in mean and standard deviation.
        yield f"the hash is that of {known.architecture} ({known.file_name}), the spec names {model.architecture}"


def _different(name: str, found: torch.Tensor, expected: torch.Tensor) -> Iterator[str]:
    if found.shape != expected.shape:
        yield f"{name} has shape {_shape(found)}, required {_shape(expected)}"
    if found.dtype != expected.dtype:
        yield f"{name} has type {found.dtype}, required {expected.dtype}"


def _not_finite(name: str, found: torch.Tensor) -> Iterator[str]:
    if not found.is_floating_point():
        return
    # numpy, because waking torch's threads for each of 784 small tensors takes seconds on a busy machine.
    bad = int(np.count_nonzero(~np.isfinite(found.detach().float().numpy())))
    if bad:
        yield f"{name} has {bad} of {found.numel()} values that are not finite"


def _shape(tensor: torch.Tensor) -> str:
    return str(tuple(tensor.shape))


@lru_cache(maxsize=8)
def _expected(model: spec.Model) -> Mapping[str, torch.Tensor]:
    """State dict that the architecture wants, for its names, shapes and types."""
    tensors: Mapping[str, torch.Tensor] = _network(model).state_dict()
    return tensors


def _network(model: spec.Model) -> Any:
    """Untrained network of the spec."""
    _torch()
    try:
        with warnings.catch_warnings():
            # effdet and timm use what newer releases of torch deprecate; nothing a user could act on.
            warnings.simplefilter("ignore")
            from effdet import EfficientDet
            from effdet.config import get_efficientdet_config
    except ImportError as error:
        raise _not_installed(error) from error
    try:
        config = get_efficientdet_config(model.architecture)
    except KeyError:
        raise SpecError(f"model.architecture: effdet knows no {model.architecture!r}") from None
    _require_same_pyramid(config, model)
    config.num_classes, config.image_size = model.classes, (model.image_size, model.image_size)
    return EfficientDet(config, pretrained_backbone=False)


def _require_same_pyramid(config: Any, model: spec.Model) -> None:
    names = {"min_level": "min_level", "max_level": "max_level", "anchor_scale": "anchor_scale"}
    names |= {"anchor_octaves": "num_scales", "anchor_ratios": "aspect_ratios"}
    for key, theirs in names.items():
        found, required = getattr(model, key), getattr(config, theirs)
        if found != (tuple(map(tuple, required)) if key == "anchor_ratios" else required):
            raise SpecError(
                f"model.{key} is {found}", required=f"{required}, effdet's own {theirs} of {model.architecture}"
            )


def _torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise _not_installed(error) from error
    return torch


def _not_installed(error: ImportError) -> ToolError:
    return ToolError(
        f"the checkpoint cannot be read: {error}",
        required="torch, effdet, timm and safetensors",
        remedy="pip install '.[export]' from the checkout",
    )
