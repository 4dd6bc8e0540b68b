import json

import pytest

from support.ascend.bench_summary import parse_output, read_summary
from support.errors import WrongDataError

SPREAD = {"min": 31.2, "max": 31.3, "mean": 31.25, "median": 31.25, "percentile(99%)": 31.3}


def facts(**changes):
    return {
        "NPU_compute_time": SPREAD,
        "H2D_latency": SPREAD,
        "D2H_latency": SPREAD,
        "throughput": 256.0,
        "npu_compute_time_list": [31.2, 31.3],
        "filesinfo": {"0": {"infiles": ["/bins/a.bin"], "outfiles": ["/r/a_0.bin", "C:\\r\\a_1.bin"]}},
        **changes,
    }


@pytest.fixture(params=["inside", "beside"])
def place(request, tmp_path):
    (tmp_path / "bs8").mkdir()
    return tmp_path / "bs8/sumary.json" if request.param == "inside" else tmp_path / "bs8_summary.json"


def read(place, found):
    place.write_text(json.dumps(found))
    folder = place.parent if place.name == "sumary.json" else place.with_name("bs8")
    return read_summary(folder)


def test_both_layouts_are_read(place):
    summary = read(place, facts())
    assert summary.path == place
    assert summary.compute_seconds == pytest.approx((0.0312, 0.0313))
    assert (summary.mean_seconds, summary.throughput) == (pytest.approx(0.03125), 256.0)
    assert summary.files == {"a_0.bin", "a_1.bin"}


def test_pairs_of_start_and_end_are_durations(place):
    assert read(place, facts(npu_compute_time_list=[[10.0, 41.0], [50.0, 82.0]])).compute_seconds == (0.031, 0.032)


def test_what_older_versions_do_not_keep_is_unknown(place):
    old = {key: value for key, value in facts().items() if key not in ("npu_compute_time_list", "filesinfo")}
    summary = read(place, old)
    assert (summary.compute_seconds, summary.files) == ((), None)


@pytest.mark.parametrize(
    "found",
    [
        {},
        [],
        facts(NPU_compute_time={}),
        facts(throughput="fast"),
        facts(npu_compute_time_list=[31.2, -1.0]),
        facts(npu_compute_time_list=[float("nan")]),
        facts(filesinfo={"0": {}}),
    ],
)
def test_a_damaged_summary_is_named(place, found):
    with pytest.raises(WrongDataError, match=place.name):
        read(place, found)


def test_a_summary_that_is_no_json_is_named(place):
    place.write_text("{")
    with pytest.raises(WrongDataError, match=place.name):
        read_summary(place.parent if place.name == "sumary.json" else place.with_name("bs8"))


def test_two_summaries_are_one_too_many(tmp_path):
    (tmp_path / "bs8").mkdir()
    for path in (tmp_path / "bs8/sumary.json", tmp_path / "bs8_summary.json"):
        path.write_text(json.dumps(facts()))
    with pytest.raises(WrongDataError, match="two summaries"):
        read_summary(tmp_path / "bs8")


def test_no_summary_is_none(tmp_path):
    assert read_summary(tmp_path) is None


@pytest.mark.parametrize(
    "line",
    [
        "[INFO] throughput 1000*batchsize(8)/NPU_compute_time.mean(31.25): 256.0",
        "[INFO] throughput 1000*batchsize.mean(8)/NPU_compute_time.mean(31.25): 256.0",
        "[INFO] throughput 1000*batchsize.mean(8.0)/NPU_compute_time.mean(3.125e1): 2.56e2",
    ],
)
def test_both_labels_of_the_throughput_are_read_behind_a_progress_bar(line):
    found = parse_output(f"\rInference array Processing: 50%\rInference array Processing: 100%\r{line}\n[INFO] ---\n")
    assert (found.batch, found.mean_ms, found.throughput) == (8, 31.25, 256)


def test_without_the_line_there_is_no_throughput():
    assert parse_output("[INFO] load model success\n") is None
