import json
import math
from pathlib import Path

import pytest
from pydantic import TypeAdapter, ValidationError

from support.evidence import model
from support.evidence.model import BundleName, EvidenceDocument, json_schema, schema_text

SCHEMA = Path(model.__file__).with_name("schema.json")


def test_the_published_schema_is_that_of_the_models():
    # Write schema_text() into the file after a change, and raise schema_version if old evidence no longer fits.
    assert SCHEMA.read_text(encoding="utf-8") == schema_text()


def test_the_schema_admits_numbers_that_json_does_not_have():
    value = json_schema()["$defs"]["Reading"]["properties"]["value"]
    assert value["anyOf"][1] == {"enum": ["NaN", "Infinity", "-Infinity"]}


def test_the_schema_names_every_key_that_evidence_has(document):
    written = json.loads(document.model_dump_json())
    assert written.keys() == json_schema()["properties"].keys()
    assert written.keys() >= set(json_schema()["required"])


def test_a_document_survives_its_journey_as_json(document):
    assert EvidenceDocument.model_validate_json(document.model_dump_json()) == document


def test_a_number_that_is_none_survives_its_journey_as_json(document):
    reference = document.reference.model_copy(update={"ap": math.nan})
    text = document.model_copy(update={"reference": reference}).model_dump_json()
    assert math.isnan(EvidenceDocument.model_validate_json(text).reference.ap)


@pytest.mark.parametrize("name", ["evidence.json", "detections/bs8.npz", "pictures/000000000139.jpg"])
def test_names_below_the_folder_of_a_bundle_are_good(name):
    assert TypeAdapter(BundleName).validate_python(name) == name


@pytest.mark.parametrize(
    "name", ["../x", "a/../x", "/etc/passwd", "a//b", "./a", ".hidden", "a\\b", "a\n", "C:x", "", "a/", "x" * 201]
)
def test_names_that_could_lead_elsewhere_are_refused(name):
    with pytest.raises(ValidationError):
        TypeAdapter(BundleName).validate_python(name)


def changed(document, **changes):
    return EvidenceDocument.model_validate({**dict(document), **changes})


def test_a_spec_beside_the_digest_of_another_is_refused(document):
    with pytest.raises(ValidationError, match=r"spec_digest is 0{64}, the spec has [0-9a-f]{64}"):
        changed(document, spec_digest="0" * 64)


def test_an_unknown_reason_is_refused(document):
    with pytest.raises(ValidationError, match="session_reasons: unknown bad-weather"):
        changed(document, session_reasons=("bad-weather",))


def test_a_pass_timed_at_another_batch_size_is_refused(document):
    swapped = {1: document.passes[8], 8: document.passes[1]}
    with pytest.raises(ValidationError, match=r"passes.1: timed at batch 8"):
        changed(document, passes=swapped)


def test_a_key_nobody_knows_is_refused(document):
    text = document.model_dump_json().replace('"schema_version"', '"comment":"","schema_version"', 1)
    with pytest.raises(ValidationError, match="Extra inputs"):
        EvidenceDocument.model_validate_json(text)
