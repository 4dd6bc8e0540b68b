from support.evidence.bundle import read_bundle, write_bundle
from support.report.files import HTML, MARKDOWN, write_pages


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
