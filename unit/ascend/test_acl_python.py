import sys

import pytest

from support.ascend import acl_python
from support.ascend.acl_python import AclPython, find_acl_python
from support.ascend.host import AscendHost
from support.errors import ToolError
from support.simulator.host import Simulation, simulated_host
from unit.ascend.interpreters import OLDEST, OURS, interpreter

FOUND = '{"python": "3.7.5", "numpy": "1.21", "generation": "V1", "wheel": "0.0.1"}'
NO_MODULE = '{"python": "3.9.2", "error": "ModuleNotFoundError: No module named \'aclruntime\'"}'
NO_NUMPY = '{"python": "3.9.2", "error": "ModuleNotFoundError: No module named \'numpy\'"}'
NO_LIBRARY = '{"python": "3.9.2", "error": "ImportError: libascendcl.so: cannot open shared object file"}'


# Interpreters that print what a real one would; the suite's own is the first of them.
@pytest.fixture
def interpreters(tmp_path, monkeypatch):
    monkeypatch.setattr(acl_python, "USUAL", "no/such/place")

    def make(**answers):
        for name, answer in answers.items():
            folder, _, name = name.partition("__")
            path = tmp_path / folder / name.replace("_", ".")
            path.parent.mkdir(exist_ok=True)
            path.write_text(f"#!/bin/sh\necho $0 >> {tmp_path}/tried\n{answer}\n")
            path.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(tmp_path / "own/python"))
        return AscendHost({"PATH": f"{tmp_path}/a:{tmp_path}/b"})

    return make


@pytest.fixture
def tried(tmp_path):
    return lambda: [line.removeprefix(f"{tmp_path}/") for line in (tmp_path / "tried").read_text().splitlines()]


def says(answer):
    return f"/bin/cat <<END\n{answer}\nEND"


# -- with a runtime ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("generation", ["V1", "V2", "V3"])
@pytest.mark.parametrize("name", [OURS, OLDEST])
def test_a_runtime_is_found_under_its_interpreter(tmp_path, generation, name):
    host, given = simulated_host(tmp_path, Simulation("310P3", generation)), interpreter(name)
    found = find_acl_python(host, given, timeout=60)
    assert (found.path, found.generation) == (given, generation)
    assert found.wheel == ("0.0.1" if generation == "V1" else "0.0.2")
    assert str(found) == f"aclruntime {generation} (wheel {found.wheel}) under Python {found.python}, {given}"


def test_the_interpreter_of_the_suite_comes_first(tmp_path):
    assert find_acl_python(simulated_host(tmp_path, Simulation("310")), None, timeout=60).path == interpreter(OURS)


def test_a_host_that_is_not_sourced_is_told_so(tmp_path, monkeypatch):
    host = simulated_host(tmp_path, Simulation("310P3", faults=("not-sourced",)))
    with pytest.raises(ToolError, match=rf"{sys.executable}: ImportError: libascendcl\.so") as caught:
        find_acl_python(host, interpreter(OURS), timeout=60)
    assert "set_env.sh" in caught.value.remedy


# -- which are tried ---------------------------------------------------------------------------------------------------


def test_after_our_own_those_on_path_are_tried_from_the_oldest_on(interpreters, tried, tmp_path):
    host = interpreters(
        own__python=says(NO_MODULE),
        a__python3_12=says(NO_MODULE),
        a__python3_9=says(NO_MODULE),
        b__python3_9=says(NO_MODULE),
        b__python3_7=says(NO_MODULE),
        b__python3=says(FOUND),
    )
    found = find_acl_python(host, None, timeout=10)
    assert found == AclPython(tmp_path / "b/python3", "3.7.5", "V1", "0.0.1")
    assert tried() == ["own/python", "b/python3.7", "a/python3.9", "b/python3.9", "a/python3.12", "b/python3"]


def test_those_in_the_places_of_the_vendor_are_tried_last(interpreters, tried, tmp_path, monkeypatch):
    host = interpreters(own__python=says(NO_MODULE), a__python3=says(NO_MODULE), vendor__python3=says(FOUND))
    monkeypatch.setattr(acl_python, "USUAL", f"{tmp_path.relative_to('/')}/vend*/python3")
    assert find_acl_python(host, None, timeout=10).path == tmp_path / "vendor/python3"
    assert tried() == ["own/python", "a/python3", "vendor/python3"]


def test_two_names_of_one_interpreter_are_tried_once(interpreters, tried, tmp_path):
    host = interpreters(own__python=says(NO_MODULE), a__python3_9=says(NO_MODULE), b__python3_11=says(FOUND))
    (tmp_path / "a/python3").symlink_to("python3.9")
    (tmp_path / "a/python3.10").symlink_to("python3.9")
    find_acl_python(host, None, timeout=10)
    assert tried() == ["own/python", "a/python3.9", "b/python3.11"]


# As in a virtual environment, whose interpreter is a link and whose packages are its own.
def test_a_link_from_another_folder_is_another_interpreter(interpreters, tmp_path):
    which = f"case $0 in {tmp_path}/b/*) {says(FOUND)}\n;; *) {says(NO_MODULE)}\n;; esac"
    host = interpreters(own__python=which)
    for folder in "ab":
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "python3.9").symlink_to(tmp_path / "own/python")
    assert find_acl_python(host, None, timeout=10).path == tmp_path / "b/python3.9"


def test_what_cannot_be_executed_is_no_interpreter(interpreters, tried, tmp_path):
    host = interpreters(own__python=says(NO_MODULE), a__python3_7=says(FOUND), b__python3_8=says(FOUND))
    (tmp_path / "a/python3.7").chmod(0o644)
    (tmp_path / "a/python3.8").mkdir()
    assert find_acl_python(host, None, timeout=10).path == tmp_path / "b/python3.8"


def test_no_other_is_tried_than_the_one_that_was_given(interpreters, tried, tmp_path):
    host = interpreters(own__python=says(FOUND), a__python3_7=says(NO_MODULE))
    with pytest.raises(ToolError, match=r"a/python3\.7: ModuleNotFoundError: No module named 'aclruntime'"):
        find_acl_python(host, tmp_path / "a/python3.7", timeout=10)
    assert tried() == ["a/python3.7"]


def test_lines_of_libraries_around_the_answer_do_not_matter(interpreters):
    host = interpreters(own__python=f"echo '[INFO] loading'\n{says(FOUND)}\necho '[WARN] done'\necho '{{}}'\necho 7")
    assert find_acl_python(host, None, timeout=10).generation == "V1"


# -- why none will do --------------------------------------------------------------------------------------------------


def test_every_interpreter_is_listed_with_its_reason(interpreters, tmp_path):
    host = interpreters(
        own__python=says(NO_MODULE),
        a__python3_7=says(NO_NUMPY),
        a__python3_8="echo 'Illegal\ninstruction'; exit 3",
        b__python3_9="kill -ABRT $$",
    )
    with pytest.raises(ToolError, match="no interpreter can import aclruntime") as caught:
        find_acl_python(host, None, timeout=30)
    reasons = dict(line.strip().split(": ", 1) for line in caught.value.found.splitlines()[1:])
    assert reasons == {
        f"{tmp_path}/own/python": "ModuleNotFoundError: No module named 'aclruntime'",
        f"{tmp_path}/a/python3.7": "ModuleNotFoundError: No module named 'numpy'",
        f"{tmp_path}/a/python3.8": "ended with 3: Illegal instruction",
        f"{tmp_path}/b/python3.9": "ended with -6: no output",
    }


def test_an_import_that_hangs_is_a_reason(interpreters, tmp_path):
    host = interpreters(a__python3_10="/bin/sleep 30")
    with pytest.raises(ToolError, match=r"a/python3\.10: python3\.10 had not ended after 0\.3 s"):
        find_acl_python(host, tmp_path / "a/python3.10", timeout=0.3)


@pytest.mark.parametrize(
    ("answer", "remedy"),
    [(NO_MODULE, "pip install the aclruntime wheel"), (NO_NUMPY, "install numpy"), (NO_LIBRARY, "set_env.sh")],
)
def test_what_to_do_follows_from_the_reasons(interpreters, answer, remedy):
    with pytest.raises(ToolError) as caught:
        find_acl_python(interpreters(own__python=says(answer)), None, timeout=10)
    assert remedy in caught.value.remedy


def test_a_missing_interpreter_is_named(tmp_path):
    with pytest.raises(ToolError, match="nowhere cannot be started: No such file"):
        find_acl_python(AscendHost({}), tmp_path / "nowhere", timeout=10)
