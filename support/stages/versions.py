"""Versions of the tools a stage uses, without importing them."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from support.errors import ToolError

__all__ = ["tool_versions"]


def tool_versions(*packages: str) -> dict[str, str]:
    """
    Versions of installed packages.

    Raises
    ------
    ToolError
        If one of them is not installed.
    """
    try:
        return {package: version(package) for package in packages}
    except PackageNotFoundError as error:
        raise ToolError(
            f"the package {error.name} is not installed",
            required=", ".join(packages),
            remedy="pip install '.[export]' from the checkout, or gate a prebuilt model with --onnx=FILE or --om=FILE",
        ) from None
