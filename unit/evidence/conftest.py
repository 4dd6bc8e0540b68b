import pytest

from unit.evidence.bundles import World


@pytest.fixture(scope="session")
def world():
    return World(mode="build")


@pytest.fixture(scope="session")
def document(world):
    return world.document
