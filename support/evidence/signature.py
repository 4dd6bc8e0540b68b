"""Who made a bundle: a detached signature by ``ssh-keygen -Y``, which is on every host that has ssh."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

from support.errors import NoDataError, SuiteTimeoutError, ToolError, WrongDataError
from support.evidence.model import EVIDENCE, SIGNATURE

__all__ = ["sign", "verify_signature"]

#: Separates our signatures from those that the same key makes for other purposes.
NAMESPACE = "acceptance"
#: Seconds; it works on one small hash, unless it waits for a passphrase or a token.
TIMEOUT = 60.0
UNSIGNED = "unsigned"


def sign(folder: Path, key: Path) -> None:
    """
    Sign a bundle, replacing an earlier signature.

    Parameters
    ----------
    folder : Path
        A finished bundle; since ``evidence.json`` lists the hashes of all other files, its signature covers them.
    key : Path
        Private key, or a public key whose private half is in the agent.

    Raises
    ------
    ToolError, SuiteTimeoutError
        If ``ssh-keygen`` is not there, or fails.
    """
    (folder / SIGNATURE).unlink(missing_ok=True)  # or ssh-keygen asks whether to overwrite it
    status, output = _ssh_keygen("sign", "-f", str(key), "-n", NAMESPACE, str((folder / EVIDENCE).absolute()))
    if status != 0:
        raise ToolError(f"ssh-keygen could not sign {folder / EVIDENCE}: {output}", remedy="check the key file")


def verify_signature(folder: Path, allowed_signers: Path | None) -> str:
    """
    Say who signed a bundle.

    Parameters
    ----------
    folder : Path
        A bundle whose seal holds, from `support.evidence.bundle.read_bundle`.
    allowed_signers : Path, optional
        Who may sign, one a line as in ssh-keygen's manual, ALLOWED SIGNERS; without it a signature can be checked, but
        not who made it.

    Returns
    -------
    words : str
        ``unsigned``, ``signed by NAME, verified``, or that the signature fits and its maker is unknown.

    Raises
    ------
    WrongDataError
        If there is a signature of other evidence, or by somebody who may not sign.
    NoDataError
        If the list of signers is not there.
    ToolError, SuiteTimeoutError
        If ``ssh-keygen`` is not there or hangs.
    """
    signature = folder / SIGNATURE
    if not signature.is_file():
        return UNSIGNED
    fits = _checked(folder, "check-novalidate")
    if allowed_signers is None:
        return f"signed with key {_key(fits)}, whose owner was not verified"
    if not allowed_signers.is_file():
        raise NoDataError(f"{allowed_signers} is not a file", required="a list of allowed signers")
    name = _principal(signature, allowed_signers, fits)
    _checked(folder, "verify", "-f", str(allowed_signers), "-I", name)
    return f"signed by {name}, verified"


def _principal(signature: Path, allowed_signers: Path, fits: str) -> str:
    status, output = _ssh_keygen("find-principals", "-s", str(signature), "-f", str(allowed_signers))
    if status != 0 or not output:
        raise WrongDataError(
            f"{signature} is by key {_key(fits)}, which may not sign", required=f"a signer of {allowed_signers}"
        )
    return output.splitlines()[0]


def _checked(folder: Path, action: str, *arguments: str) -> str:
    signature, evidence = folder / SIGNATURE, folder / EVIDENCE
    given = (*arguments, "-n", NAMESPACE, "-s", str(signature))
    status, output = _ssh_keygen(action, *given, data=evidence.read_bytes())
    if status != 0:
        raise WrongDataError(
            f"{signature} is no signature of {EVIDENCE}: {output}", required="the signature of this very bundle"
        )
    return output


def _key(output: str) -> str:
    found = re.search(r"SHA256:\S+", output)
    return found.group() if found else "of unknown fingerprint"


def _ssh_keygen(action: str, *arguments: str, data: bytes = b"") -> tuple[int, str]:
    tool = shutil.which("ssh-keygen")
    if tool is None:
        raise ToolError("ssh-keygen is not on PATH", remedy="install the client of OpenSSH, version 8.1 or later")
    command = [tool, "-Y", action, *arguments]
    try:
        done = subprocess.run(command, input=data, capture_output=True, timeout=TIMEOUT, check=False)
    except subprocess.TimeoutExpired:
        raise SuiteTimeoutError(f"ssh-keygen -Y {action} gave no answer in {TIMEOUT:g} s") from None
    except OSError as error:
        raise ToolError(f"ssh-keygen cannot be started: {error}") from error
    return done.returncode, (done.stdout + done.stderr).decode(errors="replace").strip()
