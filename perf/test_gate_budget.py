import re
import subprocess
import sys
import time

import pytest

from perf.kit import CHECKOUT, SPEC, kit_run
from perf.rows import Row
from support.simulator.pace import COPY_RATE
from support.spec import load_spec

pytestmark = [pytest.mark.budget, pytest.mark.nightly, pytest.mark.needs_torch]

CHIP = "sim:310P3,v3,paced"
#: What the gate may take beyond 1.25 times the time of the device and its copies.
FACTOR, MINUTES = 1.25, 3
#: Bytes that move for an image: its input and its raw heads.
IMAGE_BYTES = 4 * (3 * 512 * 512 + (810 + 36) * sum(side**2 for side in (64, 32, 16, 8, 4)))
RATES = load_spec("efficientdet_d0").baselines["310P3-cann6"].images_per_second
#: Lines of the log that tell how long a step took.
STEP = re.compile(r"^ +(\S.*): ([\d.]+) s$", re.MULTILINE)


def device_seconds(images):
    calls = {batch: -(-images // batch) for batch in SPEC.batch_sizes}
    return sum(count * batch * (1 / RATES[batch] + IMAGE_BYTES / COPY_RATE) for batch, count in calls.items())


def test_a_gate_with_warm_artifacts_takes_little_more_than_the_device(tmp_path, capsys):
    (tmp_path / "run").mkdir()
    run = kit_run(tmp_path / "run", CHIP)
    models = [run.model(batch) for batch in SPEC.batch_sizes]
    assert len(models) == len(SPEC.batch_sizes)
    assert run.reference.facts.ap > 0
    least = device_seconds(len(run.feed))

    def share():
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-mpytest", "-macceptance", f"--chip={CHIP}", "--spec=shapes_d0", "-pno:cacheprovider"],
            cwd=CHECKOUT,
            capture_output=True,
            text=True,
            check=False,
        )
        wall = time.perf_counter() - start
        assert "on simulated 310P3" in done.stdout, done.stdout[-2000:] + done.stderr[-2000:]
        steps = sorted(STEP.findall(done.stdout), key=lambda step: -float(step[1]))
        parts = ", ".join(f"{title} {seconds} s" for title, seconds in steps[:6])
        detail = f"{wall:.0f} s, device and copies {least:.1f} s; longest steps: {parts}"
        return wall / (FACTOR * least + 60 * MINUTES), detail

    what = f"whole gate, warm artifacts, {len(SPEC.batch_sizes)} batch sizes"
    row = Row(what, 1.0, f"of {FACTOR} times the device and {MINUTES} minutes", fails=None)
    row.judge(capsys, share)
