import pytest

from support.faults.bench import BATCH
from support.faults.clean import clean_plans
from support.spec import load_spec


@pytest.mark.parametrize(("full", "runs"), [(False, 6), (True, 30)])
def test_clean_runs_differ_in_images_order_and_batch_sizes(full, runs):
    plans = clean_plans(full=full)
    assert len(plans) == len({plan.name for plan in plans}) == runs
    assert len({plan.seed for plan in plans}) >= 2
    known = load_spec("shapes_d0").batch_sizes
    for plan in plans:
        assert plan.images >= 64
        assert len(plan.batch_sizes) >= 2
        assert set(plan.batch_sizes) <= set(known)
        assert BATCH in plan.batch_sizes
        assert all(plan.images % size for size in plan.batch_sizes if size > 1)


def test_the_full_form_covers_the_whole_kit_at_every_batch_size():
    kit = load_spec("shapes_d0")
    assert {(plan.images, plan.batch_sizes) for plan in clean_plans(full=True)} == {
        (kit.dataset.image_count, kit.batch_sizes)
    }
