import math

from support.localiser.record import BlockError, BlockSearch, HeadError, Localisation, StageError, SuspectImage
from support.localiser.text import lines


def search(*wrong):
    errors = [BlockError(block=f"b{place}", local=1e-6, chained=0.1) for place in range(20)]
    for place, error in wrong:
        errors[place] = BlockError(block=f"b{place}", local=error, chained=0.1)
    return BlockSearch(method="the ONNX", images=2, errors=tuple(errors))


FOUND = Localisation(
    suspect="b3",
    red=("stage_tensors[bs1]", "stage_ap"),
    batch=1,
    stages=(
        StageError(stage="raw onnx", logit_error=3e-5, box_error=0, logit_limit=0.001, box_limit=0.001, ap=41.2),
        StageError(stage="candidate", logit_error=1.5, box_error=0, logit_limit=0.001, box_limit=0.001),
    ),
    heads=(
        HeadError(kind="class", level=3, error=1.5, limit=0.001),
        HeadError(kind="box", level=3, error=0, limit=0.001),
    ),
    blocks=search((3, math.inf), *((place, 0.1) for place in range(4, 10))),
    half_blocks=search(),
    groups=("class 'disc' (id 1): 3 of 9 objects lost",),
    images=(SuspectImage(image_id=2079, difference=3.5, missed=2),),
    notes=("stages: the 60 s of the search were over",),
    seconds=12.5,
)


def test_everything_found_is_told():
    assert lines(FOUND) == (
        "look first at: b3",
        "  red: stage_tensors[bs1], stage_ap; searched at batch size 1 in 12.5 s",
        "  stage raw onnx: logits 3e-05 (limit 0.001), boxes 0 (limit 0.001), AP 41.200",
        "  stage candidate: logits 1.5 (limit 0.001), boxes 0 (limit 0.001), red",
        "  heads outside their limits: class P3 1.5",
        "  blocks of the ONNX, 2 images, relative errors:",
        "    b3: inf on golden inputs, 0.1 in the chain",
        *(f"    b{place}: 0.1 on golden inputs, 0.1 in the chain" for place in range(4, 8)),
        "    and 2 more",
        "  blocks of the ONNX, 2 images, relative errors:",
        "    no block stands out; largest on golden inputs 1e-06, b0",
        "  class 'disc' (id 1): 3 of 9 objects lost",
        "  worst images: 2079",
        "  not done: stages: the 60 s of the search were over",
    )


def test_a_localisation_survives_json():
    again = Localisation.model_validate_json(FOUND.model_dump_json())
    assert again == FOUND
    assert again.blocks.worst.local == math.inf
