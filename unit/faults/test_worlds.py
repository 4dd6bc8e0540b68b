import pytest

from support.dataset import open_dataset
from support.faults.worlds import FIRST_ID, quoting, world
from support.measurements.data import dataset_pins


@pytest.fixture
def make(tmp_path):
    def make(seed=0, images=5, name="world", **changes):
        return world(tmp_path / name, seed=seed, images=images, batch_sizes=(1, 8), **changes)

    return make


def opened(made):
    return open_dataset(made.root, made.spec.dataset)


def test_a_world_is_a_data_set_whose_pins_hold(make):
    made = make()
    dataset = opened(made)
    assert [image.id for image in dataset.images] == list(range(FIRST_ID, FIRST_ID + 5))
    assert dataset_pins(dataset, made.spec.dataset).values == {"images": 5}
    assert all(image.path.is_file() for image in dataset.images)
    assert {row["image_id"] for row in dataset.truth.coco["annotations"]} <= {image.id for image in dataset.images}


def test_the_seed_alone_decides_images_and_order(make):
    names = [
        [image.file_name for image in opened(make(seed=seed, name=name)).images]
        for seed, name in ((0, "a"), (0, "b"), (1, "c"))
    ]
    assert names[0] == names[1] != names[2]


def test_one_image_may_be_wanted_first(make):
    names = [image.file_name for image in opened(make(first=196588)).images]
    assert names[0] == "000000196588.jpg"
    assert len(set(names)) == 5


def test_a_whole_kit_comes_in_another_order(make):
    made = opened(make(seed=3, images=133))
    names = [image.file_name for image in made.images]
    assert len(set(names)) == 133
    assert names != sorted(names)


def test_the_ladder_has_the_last_batch_size_unless_told_otherwise(make):
    assert make().spec.accuracy.ladder_batch == 8
    assert make(name="other", ladder_batch=1).spec.accuracy.ladder_batch == 1


def test_a_world_quotes_what_its_checkpoint_reaches(make):
    spec = quoting(make().spec, 41.17)
    assert spec.accuracy.quoted_ap == 41.17
    assert spec.clauses["accuracy_guide_floor"].limits["ap"].number == 41.1
    assert spec.clauses["accuracy_guide_drop"].limits["ap"].number == pytest.approx(0.99 * 41.17)
