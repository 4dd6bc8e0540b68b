import gzip
import io
import json
import pickle
import struct
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.slow

CHECKOUT = Path(__file__).resolve().parents[2]
#: Bytes a hostile file may make us take beyond what the libraries take for themselves.
MEMORY = 2 * 2**30
SECONDS = 200
# The limits are those of a process of its own; what it reads is the last of its words.
CHILD = f"""
import resource, sys, warnings
from pathlib import Path
warnings.simplefilter("ignore")
from unit.hostile.loaders import LOADERS
from support.errors import SuiteError
(loader,) = [loader for loader in LOADERS if loader.name == sys.argv[1]]
if loader.name in ("pth", "safetensors"):
    loader.load(loader.make(Path(sys.argv[3])))
before = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (before + {MEMORY}, before + {MEMORY}))
try:
    loader.load(Path(sys.argv[2]))
except SuiteError as error:
    print(f"refused: {{type(error).__name__}}: {{error.found[:300]}}")
else:
    print("taken")
"""


def verdict(loader, path):
    command = [sys.executable, "-c", CHILD, loader, str(path), str(path.parent)]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip().splitlines()[-1]


def jpeg(width, height):
    frame = struct.pack(">BHHB", 8, height, width, 3) + b"\x01\x11\x00\x02\x11\x00\x03\x11\x00"
    return b"\xff\xd8\xff\xc0" + struct.pack(">H", 2 + len(frame)) + frame + b"\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00"


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, *more):
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(more) + chunk(b"IDAT", zlib.compress(bytes(10))) + chunk(b"IEND", b"")


def npz(**members):
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return data.getvalue()


def npy(shape, payload=b""):
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}}}".encode()
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + payload


def unpacking_npz():
    payload = io.BytesIO()
    packing = {"compression": zipfile.ZIP_DEFLATED, "compresslevel": 1}
    with zipfile.ZipFile(payload, "w", **packing) as archive, archive.open("images.npy", "w") as file:
        file.write(npy("(301989888,)"))
        for _ in range(18):
            file.write(bytes(2**26))
    return payload.getvalue()


def safetensors(shape, offsets, length=None):
    header = json.dumps({"a": {"dtype": "F32", "shape": shape, "data_offsets": offsets}}).encode()
    return (len(header) if length is None else length).to_bytes(8, "little") + header + bytes(8)


def torch_bomb():
    """Make a checkpoint that says one of its records has 8 GB."""
    import torch

    plain, packed = io.BytesIO(), io.BytesIO()
    torch.save({"a": torch.zeros(4)}, plain)
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(packed, "w") as bomb:
        for name in source.namelist():
            bomb.writestr(name, source.read(name))
        bomb.filelist[-1].file_size = 2**33
    return packed.getvalue()


BOMBS = {
    "a JPEG of 65500 x 65500": ("jpeg", lambda: jpeg(65500, 65500), "pixels"),
    "a PNG of 2**31 x 2**31": ("png", lambda: png(2**31 - 1, 2**31 - 1), "pixels|decoded"),
    "a PNG whose text unpacks to 1 GB": (
        "png",
        lambda: png(9, 9, chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**30), 1))),
        "decoded",
    ),
    "an archive of 1 GB in 5 MB": ("detections", unpacking_npz, "unpacks to 1207959"),
    "evidence of 1 GB in 5 MB": ("columns of evidence", unpacking_npz, "unpacks to 1207959"),
    "an array of 2**60 numbers": ("heads", lambda: npz(class_0=npy("(1152921504606846976,)")), "damaged"),
    "an array of 2**34 numbers": ("heads", lambda: npz(class_0=npy("(17179869184,)")), "damaged"),
    "truth of 1 GB in 1 MB": ("packed truth", lambda: gzip.compress(bytes(2**30), 1), "unpacks to more"),
    "truth of empty lists": (
        "packed truth",
        lambda: gzip.compress(b"[" + b"[]," * 2**25 + b"[]]", 1),
        "unpacks to more",
    ),
    "a tensor of 2**60 bytes": ("safetensors", lambda: safetensors([2**58], [0, 2**60]), "damaged"),
    "a header of 2**60 bytes": ("safetensors", lambda: safetensors([2], [0, 8], 2**60), "damaged"),
    "a checkpoint of 8 GB": ("pth", torch_bomb, "unpacks to 8589"),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_bomb_is_refused_within_time_and_memory(bomb, tmp_path):
    loader, make, words = BOMBS[bomb]
    path = tmp_path / "bomb"
    path.write_bytes(make())
    found = verdict(loader, path)
    assert found.startswith("refused: WrongDataError"), found
    assert any(word in found for word in words.split("|")), found


class Trap:
    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return open, (self.canary, "w")


@pytest.mark.parametrize("loader", ["detections", "columns of evidence", "heads", "pth"])
def test_a_pickle_is_refused_and_never_run(loader, tmp_path):
    path, canary = tmp_path / "trap", tmp_path / "canary"
    path.write_bytes(pickle.dumps({"a": Trap(str(canary))}))
    assert verdict(loader, path).startswith("refused: WrongDataError")
    if loader != "pth":
        with path.open("wb") as file:
            np.savez(file, images=np.array([Trap(str(canary))], dtype=object))
        assert verdict(loader, path).startswith("refused: WrongDataError")
    assert not canary.exists()
