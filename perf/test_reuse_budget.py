import time

import pytest

from perf.kit import SPEC, kit_run
from perf.rows import Row

pytestmark = [pytest.mark.budget, pytest.mark.needs_torch]


def reused(run):
    return [*(run.model(batch) for batch in SPEC.batch_sizes), run.feed, run.reference]


def test_a_second_run_finds_what_the_first_one_built(tmp_path, capsys):
    (tmp_path / "first").mkdir()
    reused(kit_run(tmp_path / "first"))
    folders = (tmp_path / f"again {number}" for number in range(9))

    def seconds():
        folder = next(folders)
        folder.mkdir()
        # Of the processor: the machine may be busy with something else.
        run, start, clock = kit_run(folder), time.process_time(), time.perf_counter()
        found = reused(run)
        assert not any(artifact.built for artifact in found[: len(SPEC.batch_sizes)])
        return time.process_time() - start, f"{time.perf_counter() - clock:.2f} s of the wall"

    what = f"artifacts of {len(SPEC.batch_sizes)} batch sizes, feed and reference found again"
    Row(what, 2.0, "s of the processor", fails=8.0).judge(capsys, seconds)
