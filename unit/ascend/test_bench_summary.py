import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.ascend.bench_summary import parse_output, read_summary
from support.errors import WrongDataError

TIMES = [31.0, 31.5, 31.25]


def facts(**changes):
    files = {
        str(place): {"infiles": [f"/in/{stem}.bin"], "outfiles": [f"/there/out/{stem}_{head}.bin" for head in range(2)]}
        for place, stem in enumerate(("a", "b"))
    }
    spread = {"min": 31.0, "max": 31.5, "mean": 31.25, "median": 31.25, "percentile(99%)": 31.495}
    found = {"filesinfo": files, "args": [], "NPU_compute_time": spread, "throughput": 256.0, "pid": 7}
    found |= {"H2D_latency": spread, "D2H_latency": spread, "npu_compute_time_list": TIMES}
    return {name: value for name, value in {**found, **changes}.items() if value is not None}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "result").mkdir()
    return tmp_path / "result"


@pytest.fixture(params=["inside", "beside"])
def write(request, folder):
    path = folder / "sumary.json" if request.param == "inside" else folder.with_name("result_summary.json")
    return lambda found: path.write_text(found if isinstance(found, str) else json.dumps(found))


def test_a_summary_is_read_inside_and_beside_its_directory(write, folder):
    write(facts())
    summary = read_summary(folder)
    assert summary.compute_seconds == pytest.approx([0.031, 0.0315, 0.03125])
    assert summary.mean_seconds == 0.03125
    assert summary.throughput == 256
    assert summary.batch == 8
    assert summary.files == {"a_0.bin", "a_1.bin", "b_0.bin", "b_1.bin"}


def test_the_directory_may_be_named_after_the_time_of_the_run(tmp_path):
    folder = tmp_path / "2023_01_03-06_35_53"
    folder.mkdir()
    (tmp_path / "2023_01_03-06_35_53_summary.json").write_text(json.dumps(facts()))
    assert read_summary(folder).throughput == 256


def test_files_are_known_by_their_names_wherever_they_were_written(write, folder):
    write(facts(filesinfo={"0": {"outfiles": ["/there/a_0.bin", "C:\\there\\a_1.bin", "a_2.bin"]}}))
    assert read_summary(folder).files == {"a_0.bin", "a_1.bin", "a_2.bin"}


def test_without_a_summary_there_is_none(folder):
    assert read_summary(folder) is None


def test_two_summaries_contradict_each_other(folder):
    for path in (folder / "sumary.json", folder.with_name("result_summary.json")):
        path.write_text(json.dumps(facts()))
    with pytest.raises(WrongDataError, match=r"has two summaries: .*sumary\.json and .*result_summary\.json"):
        read_summary(folder)


def test_times_of_threads_are_pairs_of_start_and_end(write, folder):
    write(facts(npu_compute_time_list=[[100.0, 131.0], [115.5, 147.0]]))
    assert read_summary(folder).compute_seconds == pytest.approx([0.031, 0.0315])


def test_old_versions_keep_no_times_and_list_no_files(write, folder):
    write(facts(npu_compute_time_list=None, filesinfo=None, pid=None))
    summary = read_summary(folder)
    assert summary.compute_seconds == ()
    assert summary.files is None


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (json.dumps(facts())[:-20], "JSONDecodeError"),
        ("[]", "AttributeError"),
        (facts(NPU_compute_time=None), "KeyError: 'NPU_compute_time'"),
        (facts(throughput="fast"), "ValueError"),
        (facts(npu_compute_time_list=[[1.0]]), "IndexError"),
        (facts(npu_compute_time_list=["x"]), "ValueError"),
        (facts(filesinfo={"0": {"infiles": []}}), "KeyError: 'outfiles'"),
        (facts(npu_compute_time_list=[31.0, -1.0]), "not a positive number"),
        (facts(npu_compute_time_list=[31.0, float("nan")]), "not a positive number"),
        (facts(throughput=float("inf")), "not a positive number"),
    ],
)
def test_a_damaged_summary_is_refused_and_named(write, folder, found, message):
    write(found)
    with pytest.raises(WrongDataError, match=rf"(sumary|result_summary)\.json: .*{message}"):
        read_summary(folder)


@pytest.mark.parametrize("label", ["batchsize", "batchsize.mean"])
def test_both_labels_of_the_throughput_are_known(label):
    line = f"[INFO] throughput 1000*{label}(8)/NPU_compute_time.mean(31.25): 256.0"
    asked = "[INFO] get filesperbatch files0 size:4 tensor0size:32 filesperbatch:8 runcount:3"
    printed = parse_output(f"{asked}\nInference array Processing: 1/3\rInference array Processing: 3/3\r{line}\nend\n")
    assert (printed.batch, printed.mean_ms, printed.throughput, printed.images_per_run) == (8, 31.25, 256, 8)


def test_late_lines_of_native_code_do_not_hide_the_throughput():
    text = "[INFO] unload mo[INFO] throughput 1000*batchsize.mean(8.0)/NPU_compute_time.mean(3.1e-05): 2.5e+08\ndel"
    printed = parse_output(text)
    assert (printed.batch, printed.mean_ms, printed.throughput) == (8, 3.1e-05, 2.5e8)
    assert printed.images_per_run is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[INFO] NPU_compute_time (ms): mean = 31.25",
        "throughput 1000*batchsize(8)/NPU_compute_time.mean(31.25): ",
        "throughput 1000*batchsize(8)/NPU_compute_time.mean(3.1.2): 256.0",
        "throughput 1000*batchsize(8)/NPU_compute_time.mean(nan): nan",
    ],
)
def test_output_without_a_whole_line_of_throughput_gives_nothing(text):
    assert parse_output(text) is None


@given(st.text(max_size=60), st.text("0123456789.eE+-", max_size=8))
def test_no_output_breaks_the_reader(noise, number):
    parse_output(noise)
    parse_output(f"{noise}throughput 1000*batchsize({number})/NPU_compute_time.mean({number}): {number}{noise}")
