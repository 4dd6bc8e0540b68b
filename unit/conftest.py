import signal
from contextlib import suppress

import pytest


def pytest_configure():
    # A shell that starts the tests in the background lets them ignore Ctrl-C, which some of them are about.
    with suppress(ValueError):  # not in the main thread
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_itemcollected(item):
    # Before the filters a test names itself, which know better.
    item.add_marker(pytest.mark.filterwarnings("error"), append=False)
