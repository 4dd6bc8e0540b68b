from collections import Counter
from dataclasses import replace

import pytest

from support.ascend.om_facts import OmFacts
from support.backends.base import TensorInfo
from support.heads import head_shapes
from support.measurements.om import om_contract
from support.spec import load_spec
from support.verdict import judge

SPEC = load_spec("efficientdet_d0")
BATCH = 16


def interface(batch=BATCH, dtype="float32", output="float32"):
    outputs = tuple(TensorInfo(str(n), shape, output) for n, shape in enumerate(head_shapes(SPEC.model, batch)))
    return TensorInfo("x.1", (batch, 3, 512, 512), dtype), outputs


def facts(**changes):
    tensor, outputs = interface()
    clean = OmFacts(
        inputs=(tensor,),
        outputs=outputs,
        soc_version="Ascend310P3",
        precision_mode="allow_mix_precision",
        atc_version="8.0",
        command="atc",
        operators=Counter(Conv2D=200, ReduceMeanD=16),
        fp32_operators=Counter(ReduceMeanD=16),
        half_operators=Counter(Conv2D=200),
        dynamic=False,
        aipp=False,
    )
    return replace(clean, **changes)


def measured(loaded=None, found=None):
    return om_contract(
        loaded or interface(),
        found,
        SPEC.model,
        batch=BATCH,
        soc_version="Ascend310P3",
        fp32_types=SPEC.atc.kept_types,
    )


def word(measurement):
    return judge("om_contract", SPEC.clauses["om_contract"], measurement, batch=BATCH).word


def test_the_model_that_was_asked_for_is_accepted_and_described():
    measurement = measured(found=facts())
    assert word(measurement) == "accepted"
    assert measurement.values == {"violations": 0}
    assert measurement.findings == ("atc 8.0, allow_mix_precision; fp32: 16 ReduceMeanD",)


def test_without_a_compiler_only_what_the_runtime_tells_is_judged():
    measurement = measured()
    assert word(measurement) == "accepted"
    assert measurement.findings[0].startswith("not-verified: chip, precision and operators")


def half(**counts):
    return Counter(Conv2D=200, **counts)


@pytest.mark.parametrize(
    ("loaded", "found", "finding"),
    [
        (interface(dtype="uint8"), None, "loaded: input of uint8 instead of float32"),
        (interface(output="float16"), None, "loaded: outputs of float16 instead of float32"),
        (None, facts(soc_version="Ascend310"), "compiled for Ascend310, the device is an Ascend310P3"),
        (None, facts(dynamic=True), "compiled for several batch sizes"),
        (None, facts(aipp=True), "compiled with AIPP"),
        (None, facts(inputs=interface()[:1] * 2), "file: 2 inputs instead of one"),
        (None, facts(inputs=interface(batch=4)[:1]), "file: input of shape [4, 3, 512, 512]"),
        (None, facts(inputs=interface(dtype="uint8")[:1]), "file: input of uint8"),
        (None, facts(outputs=interface(output="float16")[1]), "file: outputs of float16"),
        (None, facts(half_operators=half(ReduceMeanD=1)), "1 of 16 ReduceMeanD compute in half precision"),
        (
            None,
            facts(fp32_operators=Counter(), half_operators=half(ReduceMeanD=16)),
            "16 of 16 ReduceMeanD compute in half precision; the mixed-precision list was ignored",
        ),
        (
            None,
            facts(operators=Counter(ReduceMean=16), half_operators=Counter(ReduceMean=16)),
            "16 ReduceMean compute in half precision; the mixed-precision list names ReduceMeanD",
        ),
    ],
)
def test_any_other_model_is_rejected(loaded, found, finding):
    measurement = measured(loaded, found)
    assert measurement.values == {"violations": 1}
    assert word(measurement) == "rejected"
    assert measurement.findings[0].startswith(finding)


def test_a_model_of_another_batch_size_is_wrong_in_every_shape():
    tensor, outputs = interface(batch=64)
    measurement = measured((tensor, outputs), facts(inputs=(tensor,), outputs=outputs))
    assert measurement.values == {"violations": 4}
    assert measurement.findings[0] == "loaded: input of shape [64, 3, 512, 512] instead of [16, 3, 512, 512]"
    assert "file: outputs of shapes [(64, 810, 64, 64)," in measurement.findings[3]


def test_outputs_of_another_network_are_rejected():
    tensor, outputs = interface()
    assert word(measured((tensor, outputs[:-1]))) == "rejected"
    assert word(measured((tensor, outputs[:-1] * 2))) == "rejected"


def test_outputs_in_another_order_are_those_of_the_network():
    tensor, outputs = interface()
    assert word(measured((tensor, outputs[::-1]))) == "accepted"


@pytest.mark.parametrize(
    ("found", "finding"),
    [
        (facts(soc_version=None), "not-verified: the chip, which the file does not tell"),
        (
            facts(fp32_operators=Counter(ReduceMeanD=13)),
            "not-verified: the precision of 3 of 16 ReduceMeanD, which the file does not tell",
        ),
        (
            facts(operators=Counter(Conv2D=200), fp32_operators=Counter()),
            "the model has no ReduceMeanD, which the mixed-precision list names",
        ),
        (facts(atc_version=None, precision_mode=None), "atc of unknown version, unknown precision mode; fp32: 16"),
    ],
)
def test_what_the_file_does_not_tell_is_said_and_not_held_against_it(found, finding):
    measurement = measured(found=found)
    assert word(measurement) == "accepted"
    assert any(line.startswith(finding) for line in measurement.findings)
