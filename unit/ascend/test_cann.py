import platform

import pytest

from support.ascend.cann import cann_version

INSTALL_INFO = """package_name=Ascend-cann-toolkit
version=8.0.RC2
innerversion=V100R001C18SPC001B133
compatible_version=[V100R001C13],[V100R001C15]
arch=aarch64
"""
VERSION_CFG = """# version: 1.0
runtime_running_version=[1.84.15.1.310:6.0.1]
compiler_running_version=[1.84.15.1.310:6.0.1]
runtime_upgrade_version=[1.82.22.2.220:5.1.RC1]
"""


@pytest.mark.parametrize("variable", ["ASCEND_TOOLKIT_HOME", "ASCEND_HOME_PATH"])
@pytest.mark.parametrize(
    ("name", "text", "version"),
    [
        ("version.cfg", VERSION_CFG, "6.0.1"),
        ("version.cfg", "runtime_running_version=[7.2.T11.0.B218:8.0.RC2.alpha001]\n", "8.0.RC2.alpha001"),
        ("version.cfg", "[toolkit]\nversion=5.1.RC1\n", "5.1.RC1"),
        ("ascend_toolkit_install.info", INSTALL_INFO, "8.0.RC2"),
        (f"{platform.machine()}-linux/ascend_toolkit_install.info", "Version=8.5.0\r\n", "8.5.0"),
        ("version.cfg", "nothing of use\n", ""),
    ],
)
def test_the_version_is_read_where_each_toolkit_writes_it(tmp_path, variable, name, text, version):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(text)
    assert cann_version({variable: str(tmp_path)}) == version


def test_the_toolkit_of_this_machine_goes_before_what_lies_beside_it(tmp_path):
    (tmp_path / "version.cfg").write_text(VERSION_CFG)
    own = tmp_path / f"{platform.machine()}-linux"
    own.mkdir()
    (own / "ascend_toolkit_install.info").write_text(INSTALL_INFO)
    assert cann_version({"ASCEND_TOOLKIT_HOME": str(tmp_path)}) == "8.0.RC2"


@pytest.mark.parametrize("env", [{}, {"ASCEND_TOOLKIT_HOME": ""}, {"ASCEND_TOOLKIT_HOME": "/nowhere"}])
def test_without_a_toolkit_the_version_is_unknown(env):
    assert cann_version(env) == ""
