import copy
import pickle

import pytest

import support.errors
from support.errors import NoDataError, SuiteError, ToolError

ERRORS = [getattr(support.errors, name) for name in support.errors.__all__]


def test_every_error_is_exported_and_is_a_suite_error():
    defined = {
        name for name, value in vars(support.errors).items() if isinstance(value, type) and name.endswith("Error")
    }
    assert set(support.errors.__all__) == defined
    assert all(issubclass(error, SuiteError) for error in ERRORS)


def test_only_errors_of_usage_and_of_contracts_share_a_reason():
    reasons = [error.reason for error in ERRORS]
    shared = {error.__name__ for error in ERRORS if reasons.count(error.reason) > 1}
    assert shared == {"SpecError", "UsageError"} | {"ContractViolationError", "NotFiniteError"}


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ({}, "no folder"),
        ({"required": "JPEGs"}, "no folder\n  required: JPEGs"),
        ({"remedy": "--coco-root=DIR"}, "no folder\n  what to do: --coco-root=DIR"),
        ({"remedy": "ask", "required": "JPEGs"}, "no folder\n  required: JPEGs\n  what to do: ask"),
    ],
)
def test_a_message_tells_what_was_found_what_was_required_and_what_to_do(more, text):
    assert str(NoDataError("no folder", **more)) == text


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.__name__)
@pytest.mark.parametrize("copied", [copy.copy, lambda error: pickle.loads(pickle.dumps(error))], ids=["copy", "pickle"])
def test_an_error_survives_its_way_between_processes(error, copied):
    original = error("found", required="required", remedy="remedy")
    other = copied(original)
    assert type(other) is error
    assert (other.found, other.required, other.remedy) == ("found", "required", "remedy")
    assert str(other) == str(original)


def test_required_and_remedy_cannot_be_mixed_up():
    with pytest.raises(TypeError, match="positional"):
        ToolError("found", "required", "remedy")
