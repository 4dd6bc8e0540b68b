import pytest


def pytest_itemcollected(item):
    # Before the filters a test names itself, which know better.
    item.add_marker(pytest.mark.filterwarnings("error"), append=False)
