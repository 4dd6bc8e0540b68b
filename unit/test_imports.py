import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in (ROOT / "support").rglob("*.py")
)
HEAVY = (
    *("torch", "torchvision", "onnxruntime", "onnx", "effdet", "timm", "numba", "pycocotools", "hotcoco", "onnxsim"),
    *("matplotlib", "jinja2", "markupsafe"),
)
#: Belong to a simulated host and its interpreter.
SIMULATED = "support.simulator.site"
#: Hold compiled functions and are themselves imported only where one of them is called.
KERNELS = ("support.kernels", "support.bootstrap_kernels")
SCRIPT = """
import importlib, json, sys
loaded = {}
for name in sys.argv[1:]:
    before = set(sys.modules)
    importlib.import_module(name)
    loaded[name] = sorted({new.split(".")[0] for new in set(sys.modules) - before})
print(json.dumps(loaded))
"""


def test_no_module_loads_a_heavy_library_when_it_is_imported():
    apart = (*KERNELS, "support.shapes.__main__")
    names = [name for name in MODULES if name not in apart and not name.startswith(SIMULATED)]
    assert len(names) > 40
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *names], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    loaded = {name: set(new) & {*HEAVY, "pytest"} for name, new in json.loads(done.stdout).items()}
    assert {name: heavy for name, heavy in loaded.items() if heavy} == {}


@pytest.mark.parametrize("name", MODULES)
def test_no_module_names_pytest_or_what_depends_on_support(name):
    path = ROOT.joinpath(*name.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imports = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    imports += [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    assert not {name.split(".")[0] for name in imports} & {
        "pytest",
        "_pytest",
        "fixtures",
        "acceptance",
        "unit",
        "perf",
    }
