import errno
from pathlib import Path

import pytest

from support.errors import BuildFailedError, NoSpaceError
from support.evidence.bundle import read_bundle, write_bundle
from support.report.files import HTML, MARKDOWN, write_pages, write_verdict_pages


def test_both_pages_are_sealed_with_the_bundle(tmp_path, document, reference, truth):
    folder = write_bundle(
        tmp_path / "bundle",
        document,
        detections=dict.fromkeys(document.passes, reference),
        reference=reference,
        truth=truth,
        pictures={},
        write_pages=write_pages,
    )
    assert {HTML, MARKDOWN} <= read_bundle(folder).document.files.keys()
    assert (folder / HTML).read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert (folder / MARKDOWN).read_text(encoding="utf-8").startswith("# ✓ accepted")


def test_the_pages_of_a_verdict_that_was_reached_again_are_written_anywhere(tmp_path, bundle):
    verdict = bundle.document.release.model_copy(update={"word": "rejected", "scope": "replay"})
    write_verdict_pages(tmp_path / "new/folder", [bundle], verdict)
    assert sorted(path.name for path in (tmp_path / "new/folder").iterdir()) == [HTML, MARKDOWN]
    assert (tmp_path / "new/folder" / MARKDOWN).read_text(encoding="utf-8").startswith("# ✗ rejected")


def test_a_place_where_no_page_can_be_written_is_told(tmp_path, bundle):
    (tmp_path / "file").touch()
    with pytest.raises(BuildFailedError, match=r"writing the report in .* failed"):
        write_verdict_pages(tmp_path / "file/folder", [bundle], bundle.document.release)


def test_a_full_disk_is_told_and_leaves_no_page(tmp_path, bundle, monkeypatch):
    def half(path, text, **_):
        path.write_bytes(text.encode()[:100])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", half)
    with pytest.raises(NoSpaceError, match=r"the disk of .*new is full"):
        write_verdict_pages(tmp_path / "new", [bundle], bundle.document.release)
    assert list((tmp_path / "new").iterdir()) == []
