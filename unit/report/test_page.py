import dataclasses
import shlex

import pytest

from support.report.page import joined_page, page_of, worst_pictures
from support.report.pictures import picture_name
from unit.report.conftest import rows_of


def changed(document, **changes):
    return document.model_copy(update=changes)


def test_a_clean_run_has_every_part(page):
    assert page.tally == {"accepted": 97, "rejected": 0, "undetermined": 0, "finding": 0}
    assert (page.reasons, page.explanations) == ((), ())
    assert [len(section.drawings) for section in (page.ladder, page.accuracy, page.speed)] == [1, 4, 1]
    assert len(page.worst) == 6
    assert all(item.picture.startswith(b"\xff\xd8") for item in page.worst)
    assert page.commands == ("git checkout 1d336a6c0", "pytest -m acceptance --chip=cpu")


def test_every_drawing_says_in_words_what_it_shows(page):
    for section in (page.ladder, page.accuracy, page.speed):
        assert all(drawing.title and drawing.words.endswith(".") for drawing in section.drawings)


def test_what_was_lost_is_told_beside_the_worst_image(bundle_of, document, truth, reference):
    image = int(reference.images[77])
    page = page_of(bundle_of(document, candidate=rows_of(reference, reference.image_ids != image)))
    title, lines = page.worst[0].caption.title, page.worst[0].caption.lines
    assert title.startswith(f"Image {image}, difference ")
    objects = [row for row in objects_of(truth, image) if not row["iscrowd"]]
    assert lines[0] == f"{len(objects)} objects, {len(objects)} of them missed by the candidate"
    assert lines[1].startswith("Lost: ")


def objects_of(truth, image):
    return [row for row in truth.coco["annotations"] if row["image_id"] == image]


def test_a_run_that_ended_before_anything_was_measured_still_has_a_page(bundle_of, document):
    early = changed(document, dataset=None, truth=None, passes={}, reference=None, ladder=None, models=())
    page = page_of(bundle_of(early))
    assert "No pass" in page.accuracy.note
    assert "not measured" in page.ladder.note
    assert page.speed.note == "Nothing was timed."
    assert page.worst == ()
    assert page.limits.rows


def test_passes_that_cannot_be_scored_say_so(bundle_of, document, reference):
    other = dataclasses.replace(reference, images=reference.images + 1, image_ids=reference.image_ids + 1)
    page = page_of(bundle_of(document, candidate=other))
    assert page.accuracy.note.startswith("The passes cannot be scored: ")
    assert page.worst == ()
    assert page.run_margins


def test_a_run_without_a_reference_shows_the_candidate_alone(bundle_of, document):
    page = page_of(bundle_of(changed(document, reference=None)))
    assert len(page.accuracy.drawings) == 4
    assert "reference" not in page.accuracy.tables[0].head
    assert len(page.worst) == 6


def test_a_pass_that_was_not_timed_is_left_out_of_the_throughput(bundle_of, document):
    passes = {batch: record for batch, record in document.passes.items() if batch < 16}
    short = passes[8].timing
    passes[1] = passes[1].model_copy(update={"timing": None})
    passes[8] = passes[8].model_copy(update={"timing": dataclasses.replace(short, calls=short.calls[:1])})
    page = page_of(bundle_of(changed(document, passes=passes)))
    assert [row[0] for row in page.speed.tables[0].rows] == ["4"]


def test_the_pictures_are_those_of_the_batch_size_of_lowest_ap(truth, reference, spec, dataset):
    image = int(reference.images[77])
    worse = rows_of(reference, reference.image_ids != image)
    paths = {image.id: image.path for image in dataset.images}
    assert picture_name(image) in worst_pictures(truth, {1: reference, 4: worse}, reference, spec, paths)
    assert picture_name(image) not in worst_pictures(truth, {1: reference}, reference, spec, paths)


def test_nothing_is_drawn_of_no_pass(truth, spec):
    assert worst_pictures(truth, {}, None, spec, {}) == {}


@pytest.mark.parametrize("argument", ["a b", "$(true)", "'"])
def test_commands_can_be_pasted_into_a_shell(bundle_of, document, argument):
    asked = document.asked.model_copy(update={"argv": ("-m", argument)})
    early = changed(document, asked=asked, truth=None, passes={}, reference=None)
    assert shlex.split(page_of(bundle_of(early)).commands[1]) == ["pytest", "-m", argument]


def of_chip(bundle_of, document, chip):
    asked = document.asked.model_copy(update={"chip": chip, "device": chip, "argv": (f"--chip={chip}",)})
    environment = document.environment.model_copy(update={"chip": chip, "cpu": f"host of the {chip}"})
    return bundle_of(changed(document, asked=asked, environment=environment))


def test_a_page_of_several_hosts_shows_the_verdict_over_all_and_the_drawings_of_the_310p(bundle_of, document):
    bundles = [of_chip(bundle_of, document, chip) for chip in ("310", "310P3", "T4")]
    verdict = changed(document.release, subject="shapes_d0 on 310 + 310P3 + T4", scope="replay")
    page = joined_page(bundles, verdict)
    assert page.document.release == verdict
    assert page.document.asked.chip == "310P3"
    told = " ".join(str(table.rows) for table in page.environments)
    assert [chip for chip in ("310", "310P3", "T4") if f"host of the {chip}, " not in told] == []
    assert {f"pytest --chip={chip}" for chip in ("310", "310P3", "T4")} <= set(page.commands)
    assert bundles[1].document.release == document.release


def test_throughput_is_seen_beside_what_other_hosts_measured_if_they_measured_it_alike(bundle_of, document):
    bundles = [of_chip(bundle_of, document, chip) for chip in ("310", "310P3", "T4")]
    (speed, passports) = joined_page(bundles, document.release).speed.tables
    runtime = {row[0]: row[2] for row in passports.rows}
    # These hosts took the time of session.run, as the table of the T4 did, and that of the 310 did not.
    assert (runtime["T4"], runtime["310"]) == ("measured on T4", page_of(bundles[1]).speed.tables[1].rows[0][2])
    ratio = speed.head.index("ratio to T4")
    assert {row[ratio] for row in speed.rows} == {"1.00"}
    (alone, _) = joined_page(bundles[1:2], document.release).speed.tables
    assert "1.00" not in {row[ratio] for row in alone.rows}


def test_without_a_310p_the_first_host_is_drawn(bundle_of, document):
    bundles = [of_chip(bundle_of, document, chip) for chip in ("T4", "310")]
    assert joined_page(bundles, document.release).document.asked.chip == "T4"
