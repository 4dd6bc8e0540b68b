import shutil
import subprocess

import pytest

from support.errors import NoDataError, SuiteTimeoutError, ToolError, WrongDataError
from support.evidence import signature
from support.evidence.bundle import read_bundle
from support.evidence.model import EVIDENCE, SIGNATURE
from support.evidence.signature import sign, verify_signature

needs_ssh_keygen = pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="needs ssh-keygen")


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keys")
    for name in ("release", "stranger"):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(folder / name)]
        subprocess.run(command, check=True)
    public = (folder / "release.pub").read_text()
    (folder / "allowed").write_text(f'manager@example.org namespaces="acceptance" {public}')
    (folder / "others").write_text(f'manager@example.org namespaces="git" {public}')
    return folder


@pytest.fixture
def bundle(world, document, tmp_path):
    return world.write(tmp_path / "bundle", document)


def test_a_bundle_without_a_signature_is_unsigned(bundle):
    assert verify_signature(bundle, None) == "unsigned"


@needs_ssh_keygen
def test_a_signer_on_the_list_is_named(bundle, keys):
    sign(bundle, keys / "release")
    assert verify_signature(bundle, keys / "allowed") == "signed by manager@example.org, verified"


@needs_ssh_keygen
def test_without_a_list_the_key_is_told_and_its_owner_is_not(bundle, keys):
    sign(bundle, keys / "release")
    words = verify_signature(bundle, None)
    assert words.startswith("signed with key SHA256:")
    assert words.endswith("whose owner was not verified")


@needs_ssh_keygen
def test_a_signature_belongs_to_the_bundle_and_can_be_replaced(bundle, keys):
    sign(bundle, keys / "stranger")
    sign(bundle, keys / "release")
    read_bundle(bundle)
    assert verify_signature(bundle, keys / "allowed") == "signed by manager@example.org, verified"


@needs_ssh_keygen
def test_a_stranger_may_not_sign(bundle, keys):
    sign(bundle, keys / "stranger")
    with pytest.raises(WrongDataError, match=rf"{SIGNATURE} is by key SHA256:.*, which may not sign"):
        verify_signature(bundle, keys / "allowed")


@needs_ssh_keygen
def test_a_key_listed_for_another_purpose_may_not_sign(bundle, keys):
    sign(bundle, keys / "release")
    with pytest.raises(WrongDataError, match=rf"{SIGNATURE} "):
        verify_signature(bundle, keys / "others")


@needs_ssh_keygen
def test_evidence_changed_after_it_was_signed_is_found(bundle, keys):
    sign(bundle, keys / "release")
    (bundle / EVIDENCE).write_text((bundle / EVIDENCE).read_text() + " ")
    with pytest.raises(WrongDataError, match=rf"{SIGNATURE} is no signature of {EVIDENCE}"):
        verify_signature(bundle, None)


@needs_ssh_keygen
def test_a_byte_changed_in_a_signature_is_found(bundle, keys):
    sign(bundle, keys / "release")
    data = bytearray((bundle / SIGNATURE).read_bytes())
    data[len(data) // 2] ^= 1
    (bundle / SIGNATURE).write_bytes(data)
    with pytest.raises(WrongDataError, match=rf"{SIGNATURE} is no signature"):
        verify_signature(bundle, None)


@needs_ssh_keygen
def test_a_list_that_is_not_there_is_told(bundle, keys):
    sign(bundle, keys / "release")
    with pytest.raises(NoDataError, match="missing is not a file"):
        verify_signature(bundle, keys / "missing")


@needs_ssh_keygen
def test_a_key_that_is_none_is_told(bundle, keys):
    with pytest.raises(ToolError, match="ssh-keygen could not sign"):
        sign(bundle, keys / "allowed")


def test_a_host_without_ssh_keygen_cannot_verify(bundle, monkeypatch):
    (bundle / SIGNATURE).write_text("a signature")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ToolError, match="ssh-keygen is not on PATH"):
        verify_signature(bundle, None)


def test_a_tool_that_waits_for_ever_is_stopped(bundle, tmp_path, monkeypatch):
    tool = tmp_path / "bin" / "ssh-keygen"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\nexec sleep 30\n")
    tool.chmod(0o755)
    (bundle / SIGNATURE).write_text("a signature")
    monkeypatch.setenv("PATH", str(tool.parent), prepend=":")
    monkeypatch.setattr(signature, "TIMEOUT", 0.2)
    with pytest.raises(SuiteTimeoutError, match=r"ssh-keygen -Y check-novalidate gave no answer in 0.2 s"):
        verify_signature(bundle, None)
