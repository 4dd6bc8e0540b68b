from contextlib import ExitStack
from types import SimpleNamespace

import pytest

from support.faults.bench import Bench, replaced
from support.progress import SilentProgress


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path / "artifacts", tmp_path / "bench", SilentProgress())


def test_folders_are_never_shared_and_go_when_the_bench_is_tidied(bench):
    first, second, kept = bench.new_folder("a"), bench.new_folder("a"), bench.new_folder("a", keep=True)
    assert len({first, second, kept}) == 3
    (first / "file").write_text("x")
    bench.tidy()
    assert [path.is_dir() for path in (first, second, kept)] == [False, False, True]
    bench.tidy()


def test_what_faults_start_from_is_made_once(bench):
    made = []

    def make():
        made.append(bench.new_folder("evidence", keep=True))
        return made[-1]

    assert bench.once("evidence", make) == bench.once("evidence", make)
    assert len(made) == 1


def test_what_was_replaced_is_there_again_when_the_stack_closes():
    owner = SimpleNamespace(name="clean")
    with ExitStack() as stack:
        assert replaced(stack, owner, "name", "faulty") == "clean"
        assert owner.name == "faulty"
    assert owner.name == "clean"


def test_a_replayed_gpu_is_among_the_capabilities(bench):
    chip = bench.capabilities.chip("T4")
    assert (chip.model, chip.serial) == ("Tesla T4", "GPU-replayed")
