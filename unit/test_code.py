import ast
from pathlib import Path

import pytest

import support.code
from support.code import MEASURING, measuring_code

SUPPORT = Path(support.code.__file__).parent
#: Where a measurement begins: what runs the pass, and what keeps it.
ROOTS = {"engine", "backends/onnx_runtime", "backends/torch_eager", "passes", "feed", "checkpoint"}
#: Imported on the way, without a say in what a pass yields; nor have those that they import.
WITHOUT_SAY = {
    "artifacts": "stores what others made",
    "dataset": "ids and sizes are in the digest of the feed",
    "deadline": "interrupts or does nothing",
    "errors": "end a pass",
    "known_checkpoints": "names of checkpoints",
    "intervals": "bounds what was measured",
    "load": "looks at the machine",
    "progress": "shows",
    "spec": "its numbers are in the key",
    "stages/onnx_from_pth": "gives PyTorch's outputs their names, which mean nothing",
}


def imported(name):
    tree = ast.parse((SUPPORT / f"{name}.py").read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "support":
            parts = node.module.split(".")[1:]
            yield from ["/".join([*parts, alias.name]) for alias in node.names]
            yield "/".join(parts)


def modules_from(roots):
    seen, waiting = set(), set(roots)
    while waiting:
        name = waiting.pop()
        if name not in seen and (SUPPORT / f"{name}.py").is_file():
            seen.add(name)
            waiting |= set() if name in WITHOUT_SAY else set(imported(name))
    return seen


def test_every_module_between_input_and_detections_is_counted():
    assert modules_from(ROOTS) == {*MEASURING, *WITHOUT_SAY}
    assert not {*MEASURING} & {*WITHOUT_SAY}


@pytest.fixture
def copy(tmp_path, monkeypatch):
    for name in MEASURING:
        path = tmp_path / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes((SUPPORT / f"{name}.py").read_bytes())
    monkeypatch.setattr(support.code, "__file__", str(tmp_path / "code.py"))
    measuring_code.cache_clear()
    yield tmp_path
    measuring_code.cache_clear()


def test_a_change_in_any_of_them_changes_the_digest(copy):
    seen = {measuring_code()}
    for name in MEASURING:
        path = copy / f"{name}.py"
        path.write_bytes(path.read_bytes() + b"\n")
        measuring_code.cache_clear()
        seen.add(measuring_code())
    assert len(seen) == len(MEASURING) + 1


def test_a_module_that_is_not_there_is_an_error(copy):
    (copy / "heads.py").unlink()
    with pytest.raises(FileNotFoundError, match=r"heads\.py"):
        measuring_code()
