import shutil
import subprocess
import sys

import pytest

from support.evidence.__main__ import main
from support.evidence.bundle import read_bundle
from support.evidence.model import SIGNATURE
from support.evidence.signature import verify_signature
from unit.evidence.bundles import World, the_spec

needs_ssh_keygen = pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="needs ssh-keygen")


@pytest.fixture
def bundle(world, document, tmp_path):
    return world.write(tmp_path / "old", document)


@pytest.fixture
def key(tmp_path):
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "key")], check=True)
    return tmp_path / "key"


@needs_ssh_keygen
def test_a_bundle_is_signed_and_stays_whole(bundle, key, capsys):
    assert main(["sign", str(bundle), f"--key={key}"]) == 0
    assert capsys.readouterr().out == f"{bundle} is signed with {key}\n"
    assert verify_signature(read_bundle(bundle).folder, None).startswith("signed with key SHA256:")


@needs_ssh_keygen
def test_nobody_signs_a_bundle_that_is_not_whole(bundle, key, capsys):
    (bundle / "notes.txt").touch()
    assert main(["sign", str(bundle), f"--key={key}"]) == 10
    assert "notes.txt does not belong to the bundle" in capsys.readouterr().err
    assert not (bundle / SIGNATURE).exists()


@needs_ssh_keygen
def test_a_key_that_is_not_there_leaves_the_bundle_unsigned(bundle, capsys):
    assert main(["sign", str(bundle), "--key=nowhere"]) == 10
    assert "ssh-keygen could not sign" in capsys.readouterr().err
    assert not (bundle / SIGNATURE).exists()


def test_a_loosened_limit_is_told_by_the_status(bundle, tmp_path, capsys):
    looser = World(mode="build", spec=the_spec(clauses__suspicious_gain__limits__ap_gain__value=9.0))
    new = looser.write(tmp_path / "new")
    assert main(["compare", str(bundle), str(new)]) == 1
    output = capsys.readouterr().out
    assert "LOOSENED limit suspicious_gain.ap_gain: 0.3 -> 9" in output
    assert output.endswith("1 loosened limits, 1 changed\n")
    assert main(["compare", str(new), str(bundle)]) == 0
    assert capsys.readouterr().out.endswith("0 loosened limits, 1 changed\n")


def test_equal_releases_have_no_changed_limit(bundle, capsys):
    assert main(["compare", str(bundle), str(bundle)]) == 0
    assert capsys.readouterr().out.endswith("0 loosened limits, 0 changed\n")


def test_evidence_that_is_not_there_or_damaged_is_no_comparison(bundle, tmp_path, capsys):
    assert main(["compare", str(bundle), str(tmp_path / "nowhere")]) == 10
    assert "nowhere/evidence.json is not a file" in capsys.readouterr().err
    (bundle / "ground_truth.json.gz").write_bytes(b"")
    assert main(["compare", str(bundle), str(bundle)]) == 10
    assert "ground_truth.json.gz was changed" in capsys.readouterr().err


def test_a_hostile_place_is_shown_and_not_obeyed(tmp_path, capsys):
    assert main(["compare", str(tmp_path / "\x1b]0;owned\x07"), str(tmp_path)]) == 10
    error = capsys.readouterr().err
    assert "\\x1b]0;owned\\x07" in error
    assert not {"\x1b", "\x07"} & set(error)


@pytest.mark.parametrize("arguments", [[], ["compare"], ["compare", "one"], ["sign", "one"], ["burn", "one"]])
def test_a_command_line_that_makes_no_sense_is_refused(arguments, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert "usage: python -m support.evidence" in capsys.readouterr().err


def test_it_is_a_program(tmp_path):
    command = [sys.executable, "-m", "support.evidence", "compare", str(tmp_path / "a"), str(tmp_path / "b")]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 10
