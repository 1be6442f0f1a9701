"""tests/upstream/source.py: the tests that a source distribution has."""

import io
import tarfile

from .source import unpack


def test_unpack(tmp_path):
    """Celery's tests and their configuration come, and its package does not."""
    archive = tmp_path / "celery-9.tar.gz"
    names = ("pyproject.toml", "celery/__init__.py", "t/__init__.py", "t/unit/test_a.py", "t.py")
    with tarfile.open(archive, "w:gz") as tar:
        for name in names:
            tar.addfile(tarfile.TarInfo(f"celery-9/{name}"), io.BytesIO())

    unpack(archive, tmp_path / "celery-9")

    files = [p for p in (tmp_path / "celery-9").rglob("*") if p.is_file()]
    unpacked = sorted(str(path.relative_to(tmp_path / "celery-9")) for path in files)
    assert unpacked == ["pyproject.toml", "t/__init__.py", "t/unit/test_a.py"]
