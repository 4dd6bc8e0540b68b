import json
import os
import warnings

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support.errors import ContractViolationError, SuiteError
from unit.hostile.loaders import LOADERS

# The same few damages in every run; many others with --hypothesis-profile=thorough.
THOROUGH = settings.get_current_profile_name() == "thorough"
damaging = settings(
    max_examples=500 if THOROUGH else 12,
    deadline=None,
    derandomize=not THOROUGH,
    database=None,
    suppress_health_check=list(HealthCheck),
)
#: Values that are in no good file.
VALUES = (
    None, True, -1, 0, 2**31, 2**53 + 1, 2**60, 10**400, -(2**63), 1e308, 5e-324, float("nan"), float("inf"), 3.5,
    "", "x", "\n\x1b[31m<script>", "../../etc/passwd", "/etc/passwd", "\0", "9" * 5000, [], {}, [[]], [None], {"a": 1},
)  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Make each good file once, and bring it back before it is damaged anew."""
    files = {}

    def make(loader):
        if loader not in files:
            path = loader.make(tmp_path_factory.mktemp("good"))
            files[loader] = path, path.read_bytes(), {p: p.read_bytes() for p in path.parent.glob("*") if p.is_file()}
            loader.load(path)
        path, good, beside = files[loader]
        for other, content in beside.items():
            other.write_bytes(content)
        return path, good

    return make


def refused(loader, path, data):
    """Whether damaged bytes are refused, which they must be in words; nobody's model is rejected for them."""
    path.write_bytes(data)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loader.load(path)
    except ContractViolationError as error:
        raise AssertionError(f"{loader} would reject a model: {error}") from error
    except SuiteError:
        return True
    return False


@st.composite
def damages(draw, data):
    place = draw(st.integers(0, len(data) - 1))
    match draw(st.sampled_from(["flip", "write", "insert", "remove", "repeat"])):
        case "flip":
            return data[:place] + bytes([data[place] ^ 1 << draw(st.integers(0, 7))]) + data[place + 1 :]
        case "write":
            junk = draw(st.sampled_from([b"\xff" * 8, b"\0" * 8]) | st.binary(min_size=1, max_size=8))
            return data[:place] + junk + data[place + len(junk) :]
        case "insert":
            return data[:place] + draw(st.binary(min_size=1, max_size=8)) + data[place:]
        case "remove":
            return data[:place] + data[place + draw(st.integers(1, 40)) :]
        case _:
            return data[:place] + data[place : place + draw(st.integers(1, 40))] + data[place:]


@pytest.mark.parametrize("loader", LOADERS, ids=str)
def test_damaged_bytes_are_refused_or_harmless(loader, made):
    @damaging
    @given(st.data())
    def check(choose):
        path, good = made(loader)
        data = choose.draw(damages(good))
        found = refused(loader, path, data)
        assert found or not loader.sealed or data == good

    check()


@pytest.mark.parametrize("loader", [loader for loader in LOADERS if loader.whole], ids=str)
def test_a_file_cut_anywhere_is_refused(loader, made):
    @damaging
    @given(st.data())
    def check(choose):
        path, good = made(loader)
        assert refused(loader, path, good[: choose.draw(st.integers(0, len(good) - 1))])

    check()


def places(value, place=()):
    yield place
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield from places(value[key], (*place, key))


def changed(value, place, new):
    if not place:
        return new
    copy = value.copy()
    copy[place[0]] = changed(value[place[0]], place[1:], new)
    return copy


@pytest.mark.parametrize("loader", [loader for loader in LOADERS if loader.json], ids=str)
def test_values_that_cannot_be_meant_are_refused_or_harmless(loader, made):
    @damaging
    @given(st.data())
    def check(choose):
        path, good = made(loader)
        value = json.loads(good)
        place = choose.draw(st.sampled_from(list(places(value))))
        refused(loader, path, json.dumps(changed(value, place, choose.draw(st.sampled_from(VALUES)))).encode())

    check()


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "9" * 5000])
@pytest.mark.parametrize("loader", [loader for loader in LOADERS if loader.number], ids=str)
def test_a_number_that_is_none_is_refused_wherever_it_counts(loader, made, number):
    path, good = made(loader)
    text = good.decode()
    assert loader.number in text
    assert refused(loader, path, text.replace(loader.number, number, 1).encode())


def deep(opening, closing):
    return (opening * 100_000 + closing * 100_000).encode()


@pytest.mark.parametrize(
    "data",
    [deep("[", "]"), deep('{"a":', "}"), b"a = " + deep("[", "]"), b"a = " + b"9" * 100_000, b"\xff\xfe{}", b"\0" * 99],
    ids=["lists", "objects", "toml", "digits", "utf-16", "zeros"],
)
@pytest.mark.parametrize("loader", LOADERS, ids=str)
def test_content_of_another_kind_is_refused(loader, made, data):
    assert refused(loader, made(loader)[0], data)


# -- something else in the place of the file ---------------------------------------------------------------------------

KINDS = {
    "nothing": lambda path: None,
    "a folder": lambda path: path.mkdir(),
    "a pipe": lambda path: os.mkfifo(path),
    "a link to nothing": lambda path: path.symlink_to("nowhere"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a link to a device without end": lambda path: path.symlink_to("/dev/zero"),
    "a link to a device without bytes": lambda path: path.symlink_to("/dev/null"),
    "a link that leads elsewhere": lambda path: path.symlink_to("/etc/passwd"),
    "an empty file": lambda path: path.touch(),
    "a file of 40 GB": lambda path: path.touch() or os.truncate(path, 40 * 2**30),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("loader", [loader for loader in LOADERS if not loader.derived], ids=str)
def test_what_is_no_file_of_ours_is_refused_at_once(loader, tmp_path, kind):
    path = loader.make(tmp_path)
    path.unlink()
    KINDS[kind](path)
    if kind == "nothing" and loader.optional:
        assert loader.load(path) is None
    else:
        with pytest.raises(SuiteError):
            loader.load(path)
