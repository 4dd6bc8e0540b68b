import sys
from pathlib import Path

import pytest

from support.ascend.host import AscendHost

SHARED = Path(__file__).resolve().parents[3] / "shared"


@pytest.fixture
def captures():
    folder = SHARED / "reference/npu-smi"
    if not folder.is_dir():
        pytest.skip("needs the published captures beside the checkout: shared/reference/npu-smi")
    # The first line tells where a capture was published.
    return {path.name: path.read_text().split("\n", 1)[1] for path in sorted(folder.glob("*.txt"))}


@pytest.fixture
def tools(tmp_path):
    """Write executables; gives the host on whose PATH they are, and nothing else is."""
    folder = tmp_path / "tools"
    folder.mkdir()

    def tools(**scripts):
        for name, script in scripts.items():
            path = folder / name.replace("_", "-")
            path.write_text(f"#!{sys.executable}\n{script}")
            path.chmod(0o755)
        return AscendHost({"PATH": str(folder)})

    return tools
