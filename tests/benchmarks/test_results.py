"""benchmarks/results.py: what a session's file says of where its figures are from."""

import shutil
import subprocess

import pytest

from benchmarks import results

needs_git = pytest.mark.skipif(not shutil.which("git"), reason="git is not installed")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where the results are, in a project without a repository."""
    project = tmp_path / "project"
    folder = project / "results"
    folder.mkdir(parents=True)
    monkeypatch.setattr(results, "FOLDER", folder)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    return folder


def git(folder, *args):
    identity = ("-c", "user.name=x", "-c", "user.email=x@example.invalid")
    command = ["git", "-C", str(folder.parent), *identity, *args]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@needs_git
def test_the_commit_is_named(folder):
    """And whether what was measured is that commit."""
    file = folder.parent / "file"
    file.write_text("1")
    git(folder, "init")
    git(folder, "add", "file")
    git(folder, "commit", "-m", "first")
    head = git(folder, "rev-parse", "HEAD")

    clean = results.describe()
    file.write_text("2")
    changed = results.describe()

    assert (clean["commit"], clean["is_clean"]) == (head, True)
    assert (changed["commit"], changed["is_clean"]) == (head, False)
    assert results.name_commit(clean) == f"commit {head[:12]}"
    assert results.name_commit(changed) == f"commit {head[:12]} with changes"


@pytest.mark.parametrize("has_git", [pytest.param(True, marks=needs_git), False])
def test_without_a_repository(folder, has_git, monkeypatch):
    """One may measure what was unpacked from an archive, or where there is no git."""
    if not has_git:
        monkeypatch.setenv("PATH", str(folder))

    data = results.describe()

    assert (data["commit"], data["is_clean"]) == (None, None)
    assert results.name_commit(data) == "an unknown commit"
