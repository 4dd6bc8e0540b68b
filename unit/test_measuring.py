from types import SimpleNamespace

from support import measuring
from support.clauses import CATALOGUE
from support.errors import NoDataError
from support.spec import load_spec


def test_every_clause_is_measured_but_the_one_that_needs_saved_runs():
    assert CATALOGUE.keys() - measuring.MEASURED.keys() == {"throughput_regression"}
    assert measuring.MEASURED.keys() <= CATALOGUE.keys()


class Broken:
    spec = load_spec("shapes_d0")

    @property
    def whole_dataset(self):
        raise NoDataError("no images")


def test_what_keeps_a_clause_from_being_measured_is_its_verdict():
    verdict = measuring.verdict_of("dataset_pins", SimpleNamespace(run=Broken()))
    assert (verdict.clause, verdict.word, verdict.reason) == ("dataset_pins", "undetermined", "no-data")
    assert verdict.findings == ("no images",)
