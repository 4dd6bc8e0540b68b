import io
import json
import logging
import re
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from types import SimpleNamespace

import numpy as np
import pytest

from support.ascend.bench_summary import parse_output
from unit.simulator import stand_in

GENERATIONS = ("V1", "V2", "V3")
IMAGES = stand_in.images(5)
# In their natural order, which is not that of the alphabet.
STEMS = ["image2", "image10", "image11", "image100", "image101"]
NAMES = {f"{stem}_{place}" for stem in STEMS for place in range(2)}
COMPUTE_MS = 7.25


class Tool:
    def __init__(self, folder, generation):
        self.generation, self.folder = generation, folder
        self.host = stand_in.host(folder / "host", f"sim:310P3,{generation.lower()},devices=2")
        self.om = stand_in.model(folder / "small.om")
        for name in ("in", "out"):
            (folder / name).mkdir(mode=0o700)
        for stem, image in zip(STEMS, IMAGES, strict=True):
            image.tofile(folder / "in" / f"{stem}.bin")
        (folder / "in" / "readme.txt").write_text("ignored")
        self.runtime = stand_in.runtime_of(self.host)
        file = "ais_infer_frontend.py" if generation == "V1" else "ais_bench/__main__.py"
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(sys.modules, "aclruntime", self.runtime)
            self.module = stand_in.module_of(folder / "host/site" / file)

    def arguments(self, changes):
        given = {"model": self.om, "input": self.folder / "in", "output": self.folder / "out", **changes}
        return [part for name, value in given.items() if value is not None for part in (f"--{name}", str(value))]

    def run(self, *options, **changes):
        script = [str(self.folder / "host/bin/ais_infer.py")]
        command = script if self.generation == "V1" else [sys.executable, "-m", "ais_bench"]
        return finished([*command, *self.arguments(changes), *options], self.host.env, self.folder)

    # In this process, because it is quicker; for runs that fail.
    def fail(self, *options, **changes):
        output, errors = io.StringIO(), io.StringIO()
        handler = logging.StreamHandler(output)
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(output), redirect_stderr(errors):
            patch.setattr(sys, "argv", ["tool", *self.arguments(changes), *options])
            self.module.LOG.addHandler(handler)
            try:
                status = self.module.main()
            except SystemExit as end:
                status = end.code
            except Exception as error:
                status = 1
                errors.write(f"{type(error).__name__}: {error}")
            finally:
                self.module.LOG.removeHandler(handler)
        return SimpleNamespace(returncode=status, stdout=output.getvalue(), stderr=errors.getvalue())

    def summary(self, name):
        inside, beside = (self.folder / "out" / path for path in (f"{name}/sumary.json", f"{name}_summary.json"))
        assert inside.exists() == (self.generation == "V1")
        assert beside.exists() != inside.exists()
        return json.loads((inside if inside.exists() else beside).read_text())


# As bytes: the carriage returns count.
def finished(command, env, folder):
    done = subprocess.run(command, env=dict(env), cwd=folder, capture_output=True, timeout=60, check=False)
    return SimpleNamespace(returncode=done.returncode, stdout=done.stdout.decode(), stderr=done.stderr.decode())


@pytest.fixture(scope="module")
def tools(tmp_path_factory):
    found = {name: Tool(tmp_path_factory.mktemp(name), name) for name in GENERATIONS}
    yield found
    for tool in found.values():
        tool.runtime._Device.close_all()


# One run for many tests, and what it printed.
@pytest.fixture(scope="module")
def runs(tools):
    return {name: tool.run(output_dirname="first") for name, tool in tools.items()}


@pytest.fixture(params=GENERATIONS)
def tool(request, tools):
    return tools[request.param]


@pytest.fixture
def good(tool, runs):
    assert runs[tool.generation].returncode == 0
    return runs[tool.generation].stdout


@pytest.mark.usefixtures("good")
def test_every_image_has_its_outputs_in_files_of_its_name(tool):
    files = {path.stem: path for path in (tool.folder / "out/first").glob("*.bin")}
    assert files.keys() == NAMES
    for place, expected in enumerate(stand_in.expected(IMAGES)):
        for stem, values in zip(STEMS, expected, strict=True):
            found = np.fromfile(files[f"{stem}_{place}"], np.float32)
            np.testing.assert_array_equal(found, values.astype(np.float32).reshape(-1))


@pytest.mark.usefixtures("good")
def test_the_summary_tells_of_every_image_and_every_run(tool):
    summary = tool.summary("first")
    inputs = [sample["infiles"] for sample in summary["filesinfo"].values()]
    assert inputs == [[str(tool.folder / "in" / f"{stem}.bin")] for stem in STEMS]
    assert list(summary["filesinfo"]) == list("01234")
    assert {len(sample["outfiles"]) for sample in summary["filesinfo"].values()} == {2}
    assert summary["npu_compute_time_list"] == pytest.approx([COMPUTE_MS] * 3, abs=0.01)
    keys = {"min", "max", "mean", "median", "percentile(99%)"} | ({"count"} if tool.generation != "V1" else set())
    assert all(summary[name].keys() == keys for name in ("NPU_compute_time", "H2D_latency", "D2H_latency"))
    assert summary["args"][-2:] == ["--output_dirname", "first"]


def test_what_is_printed_comes_in_the_order_of_the_generation(tool, good):
    asked = "get filesperbatch files0 size:192 tensor0size:384 filesperbatch:2 runcount:3"
    warm = "warm up 1 times done" if tool.generation == "V1" else "warm up 1 done"
    steps = {
        "V1": ["output path:", warm, asked],
        "V2": ["try get model batchsize:2", "output path:", asked, warm],
        "V3": ["try get model batchsize:2", "output path:", asked, warm],
    }[tool.generation]
    steps += ["-----------------Performance Summary", "NPU_compute_time (ms)", "throughput 1000*batchsize"]
    # In a pipe, native lines can come late, but in their order.
    for marks in (steps, ["acl init success", "open device 0", "load model", "create model description success"]):
        places = [good.index(f"[INFO] {mark}") for mark in marks]
        assert places == sorted(places)
    assert ("H2D_latency (ms)" in good) == (tool.generation == "V1")
    assert "\rInference array Processing" in good


def test_the_first_generation_takes_a_batch_size_of_one_unless_it_is_told(tool, good):
    batch = 1 if tool.generation == "V1" else 2
    printed = parse_output(good)
    assert printed.throughput == pytest.approx(1000 * batch / COMPUTE_MS, rel=1e-3)
    assert (f"batchsize({batch})" in good) == (tool.generation == "V1")
    assert tool.summary("first")["throughput"] == printed.throughput


@pytest.mark.usefixtures("good")
def test_only_the_first_generation_refuses_a_folder_that_is_there(tool):
    (tool.folder / "out/first/stale_0.bin").touch()
    again = tool.fail if tool.generation == "V1" else tool.run
    done = again(output_dirname="first", outfmt="NPY", loop=2)
    if tool.generation == "V1":
        assert done.returncode == 1
        assert "FileExistsError" in done.stderr
        return
    assert (tool.folder / "out/first/stale_0.bin").exists()
    assert {path.stem for path in (tool.folder / "out/first").glob("*.npy")} == NAMES
    assert tool.summary("first")["NPU_compute_time"]["count"] == 6
    assert tool.summary("first")["H2D_latency"]["count"] == 3


def test_pure_inference_keeps_the_whole_batch(tools):
    tool = tools["V3"]
    done = tool.run("--display_all_summary", "1", "--warmup_count", "0", input=None, output_dirname="pure")
    assert done.returncode == 0
    assert np.fromfile(tool.folder / "out/pure/pure_infer_data_0.bin", np.float32).shape == (2 * 3 * 4 * 4,)
    assert list(tool.summary("pure")["filesinfo"]) == ["0"]
    lines = re.findall(r"\[INFO\] (\w+) \(ms\): min = ", done.stdout)
    assert lines == ["H2D_latency", "NPU_compute_time", "D2H_latency"]


def test_without_an_output_nothing_is_written(tools):
    before = set((tools["V2"].folder / "out").iterdir())
    done = tools["V2"].run("--pure_data_type", "random", input=None, output=None)
    assert done.returncode == 0
    assert set((tools["V2"].folder / "out").iterdir()) == before


def test_stems_end_at_their_first_dot(tools, tmp_path):
    tmp_path.chmod(0o700)
    for name, image in zip(("a.b.bin", "a.c.npy"), IMAGES, strict=False):
        path = tmp_path / name
        np.save(path, image) if path.suffix == ".npy" else image.tofile(path)
    assert tools["V2"].run(input=tmp_path, output_dirname="dots").returncode == 0
    found = np.fromfile(tools["V2"].folder / "out/dots/a_0.bin", np.float32)
    np.testing.assert_array_equal(found, 2 * IMAGES[1].reshape(-1))


def sized(folder, *sizes):
    for place, size in enumerate(sizes):
        (folder / f"image{place}.bin").write_bytes(bytes(size))
    folder.chmod(0o700)
    return folder


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((100,), "arg0 tensorsize: 384 filesize: 100 not match"),
        ((), "no files in"),
        ((192, 96), "ndata size:288 not match 384"),
        ((96,), "save out files error array shape:(2, 3, 4, 4)"),
        ((384, 192), "[-1][ACL: general failure]"),
    ],
)
def test_files_of_the_wrong_size_end_with_1(tools, tmp_path, sizes, message):
    done = tools["V3"].fail(input=sized(tmp_path, *sizes))
    assert done.returncode == 1
    assert message in done.stdout + done.stderr
    assert "RuntimeError" in done.stderr


# A file that is too small by a whole factor is taken for one image of a batch.
def test_a_small_file_can_pass_unnoticed(tools, tmp_path):
    om = stand_in.model(tools["V3"].folder / "four.om", batch=4)
    done = tools["V3"].run(model=om, input=sized(tmp_path, 384, 384), output_dirname="small")
    assert done.returncode == 0
    assert (tools["V3"].folder / "out/small/image0_0.bin").stat().st_size == 2 * 192


@pytest.mark.parametrize("inputs", ["/nowhere", "{folder}/in,{folder}/in", "{folder}/in/image2.bin,/nowhere.bin"])
def test_inputs_that_are_not_there_or_too_many_end_with_1(tools, inputs):
    done = tools["V2"].fail(input=inputs.format(folder=tools["V2"].folder))
    assert done.returncode == 1
    assert "Invalid" in done.stdout


def test_a_model_that_cannot_be_loaded_ends_with_1(tool):
    done = tool.fail(model="/nowhere/small.om")
    assert done.returncode == 1
    assert ("please check model path" if tool.generation == "V3" else "[1][ACL: invalid parameter]") in done.stderr


@pytest.mark.parametrize(
    ("generation", "options"),
    [
        ("V1", ["--warmup_count", "1"]),
        ("V1", ["--device", "0,1"]),
        ("V2", ["--infer_queue_count=1"]),
        ("V3", ["--infer_queue_count=1"]),
        ("V2", ["--pipeline", "1"]),
        ("V3", ["--device", "256"]),
        ("V3", ["--outfmt", "CSV"]),
        ("V3", ["--loop", "100001"]),
        ("V3", ["--output_dirname", "/absolute"]),
    ],
)
def test_options_of_another_generation_and_bad_values_end_with_2(tools, generation, options):
    done = tools[generation].fail(*options)
    assert done.returncode == 2
    assert "error:" in done.stderr


def test_the_third_generation_refuses_paths_that_others_take(tools, tmp_path):
    tool = tools["V3"]
    (tmp_path / "link.om").symlink_to(tool.om)
    (tmp_path / "wide").mkdir()
    (tmp_path / "wide").chmod(0o755)
    for changes in ({"model": tmp_path / "link.om"}, {"output": tmp_path / "wide"}, {"model": tool.folder / "in"}):
        assert tool.fail(**changes).returncode == 2
    assert tools["V2"].run(model=tmp_path / "link.om", output=tmp_path / "wide").returncode == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--output_dirname", "x"], "error bad parameters --output_dirname"),
        (["--dump", "1"], "miss output parameter"),
        (["--dump", "1", "--profiler", "1"], "error bad parameters --profiler and --dump"),
        (["--dymBatch", "2"], "not simulated: --dymBatch"),
        (["--device", "0,1"], "not simulated: several devices"),
    ],
)
def test_options_that_do_not_go_together_end_with_1(tools, options, message):
    done = tools["V2"].fail(*options, output=None)
    assert done.returncode == 1
    assert f"RuntimeError: {message}" in done.stderr


def test_without_its_environment_the_tool_cannot_be_imported(tmp_path):
    host = stand_in.host(tmp_path / "host", "sim:310P3,fault=not-sourced")
    done = finished([sys.executable, "-m", "ais_bench", "--help"], host.env, tmp_path)
    assert done.returncode == 1
    assert "ImportError: libascendcl.so" in done.stderr


def test_the_help_of_each_generation_has_its_options(tool):
    options = set(re.findall(r"--\w+", tool.fail("--help").stdout))
    assert {"--model", "--input", "--output", "--batchsize", "--device", "--dymBatch", "--dump"} <= options
    assert ("--infer_queue_count" in options) == (tool.generation == "V1")
    assert ("--run_mode" in options) == (tool.generation != "V1")
    assert ("--threads" in options) == (tool.generation == "V3")
