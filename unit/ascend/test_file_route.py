import sys
from pathlib import Path

import numpy as np
import pytest

from support.ascend.bench_cli import BenchCli
from support.ascend.file_route import FileRoute, file_route_pass
from support.ascend.host import AscendHost
from support.detections import COLUMNS, Decoder
from support.engine import run_pass
from support.errors import NoSpaceError, ToolError, WrongDataError
from support.progress import SilentProgress
from unit.test_engine import BATCH, SMALL, Device, Fed, plan

IMAGES = 10
#: A tool that computes what the tests' device computes, and counts how it was called.
TOOL = """
import json, sys
from pathlib import Path
import numpy as np
options = dict(zip(sys.argv[1::2], sys.argv[2::2]))
output = Path(options["--output"]) / options["--output_dirname"]
output.mkdir()
base = np.load({base!r})
inputs = sorted(Path(options["--input"]).iterdir())
with open({calls!r}, "a") as log:
    log.write(f"{{len(inputs)}} ")
outfiles = {{}}
for place, path in enumerate(inputs):
    level = np.fromfile(path, np.float32)[0]
    names = []
    for number in range(10):
        names.append(str(output / f"{{path.stem}}_{{number}}.bin"))
        (base[f"arr_{{number}}"] + level).astype(np.float32).tofile(names[-1])
    outfiles[str(place)] = {{"infiles": [str(path)], "outfiles": names}}
runs = -(-len(inputs) // {batch})
facts = {{"NPU_compute_time": {{"mean": 15.0}}, "throughput": 266.0, "npu_compute_time_list": [15.0] * runs}}
Path(str(output) + "_summary.json").write_text(json.dumps({{**facts, "filesinfo": outfiles}}))
print("throughput 1000*batchsize.mean(4)/NPU_compute_time.mean(15.0): 266.0")
"""
OPTIONS = frozenset({"--model", "--input", "--output", "--output_dirname", "--device", "--batchsize", "--outfmt"})


@pytest.fixture
def route(tmp_path):
    def route(change=lambda text: text):
        np.savez(tmp_path / "base.npz", *[base[0] for base in Device().base])
        script = TOOL.format(base=str(tmp_path / "base.npz"), calls=str(tmp_path / "calls"), batch=BATCH)
        (tmp_path / "tool.py").write_text(change(script))
        cli = BenchCli((sys.executable, str(tmp_path / "tool.py")), OPTIONS)
        return FileRoute(AscendHost({"PATH": ""}), cli, Path("d0.om"), device_id=0, batch=BATCH, timeout=60)

    return route


def by_files(route, tmp_path, chunk=6, images=IMAGES):
    folder = tmp_path / "scratch"
    folder.mkdir(exist_ok=True)
    feed = Fed(images)
    feed.tensors = lambda rows, out=None: _tensors(feed, rows)
    return file_route_pass(
        feed, route, Decoder(SMALL), SMALL, plan(range(images)), SilentProgress(), folder=folder, chunk_images=chunk
    )


def _tensors(feed, rows):
    return np.broadcast_to(feed.levels[list(rows)][:, None, None, None], (len(rows), 3, 128, 128)).copy()


def test_detections_are_those_of_the_engine_and_nothing_stays_on_the_disk(route, tmp_path):
    with Device() as device:
        direct = run_pass(Fed(IMAGES), device, Decoder(SMALL), SMALL, plan(range(IMAGES)), SilentProgress())
    measured = by_files(route(), tmp_path)
    assert all(np.array_equal(getattr(measured.detections, name), getattr(direct.detections, name)) for name in COLUMNS)
    assert measured.golden.batch == direct.golden.batch
    assert list((tmp_path / "scratch").iterdir()) == []


@pytest.mark.parametrize(("chunk", "calls"), [(6, "4 4 2 "), (8, "8 2 "), (1, "4 4 2 "), (100, "10 ")])
def test_chunks_are_whole_batches_and_only_the_last_has_a_tail(route, tmp_path, chunk, calls):
    measured = by_files(route(), tmp_path, chunk)
    assert (tmp_path / "calls").read_text() == calls
    assert [call.images for call in measured.timing.calls] == [4, 4, 2]
    assert [call.seconds for call in measured.timing.calls] == [0.015] * 3


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (lambda text: "raise SystemExit('RuntimeError: [1][ACL: invalid parameter] ')", ToolError, "cannot be loaded"),
        (lambda text: "raise SystemExit(2)", ToolError, "ended with 2"),
        (lambda text: "import os; os.abort()", ToolError, "ended with -6"),
        (lambda text: "print('done')", ToolError, "ended with 0 but left no summary: done"),
        (lambda text: text.replace("mean(15.0)", "mean(30.0)"), ToolError, "printed a mean of 30.0 ms, recorded 15.0"),
        (lambda text: text.replace("* runs", "* (runs + 1)"), ToolError, "tells the time of .* executions"),
        (lambda text: text.replace("range(10)", "range(9)"), WrongDataError, "does not hold 10 files"),
        (lambda text: text.replace(".astype(np.float32)", ".astype(np.float16)"), WrongDataError, "truncated files"),
        (lambda text: text.replace("enumerate(inputs)", "enumerate(inputs[1:])"), WrongDataError, "lacks the results"),
    ],
)
def test_a_tool_that_fails_or_does_not_tell_the_truth_is_found_out(route, tmp_path, change, kind, message):
    with pytest.raises(kind, match=message):
        by_files(route(change), tmp_path)
    assert list((tmp_path / "scratch").iterdir()) == []


def test_a_disk_that_is_too_small_is_refused_before_anything_is_written(route, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 10_000})())
    with pytest.raises(NoSpaceError, match="one chunk of input and result files"):
        by_files(route(), tmp_path)
    assert not (tmp_path / "calls").exists()
