"""A release is refused unless everything says the same of it."""

from __future__ import annotations

import io
import re
import subprocess
import tarfile
from pathlib import Path

import pytest

from scripts import release

ROOT = Path(__file__).parents[1]
CHANGELOG = "# Changelog\n\n## [Unreleased]\n\n## [1.2.3] - 2026-11-30\n\n- all\n"


def test_a_changelog_with_the_version() -> None:
    """The first section after what is to come, with its date."""
    release.check_changelog(CHANGELOG, "1.2.3")
    for wrong in (
        CHANGELOG.replace("1.2.3", "1.2.2"),
        CHANGELOG.replace(" - 2026-11-30", ""),
        CHANGELOG.replace("## [Unreleased]\n\n", ""),
    ):
        with pytest.raises(release.ReleaseError, match=r"\[1\.2\.3\]"):
            release.check_changelog(wrong, "1.2.3")


def test_a_package_without_a_file_is_refused(tmp_path: Path) -> None:
    """A header that is not packed would break the installation of everybody."""
    archive = tmp_path / "localmoe-1.2.3.tar.gz"
    with tarfile.open(archive, "w:gz") as packed:
        entry = tarfile.TarInfo("localmoe-1.2.3/localmoe/a.py")
        packed.addfile(entry, io.BytesIO())
    release.check_package(archive, ["localmoe/a.py", "tests/b.py"])
    with pytest.raises(release.ReleaseError, match=r"lacks localmoe/native/c\.h"):
        release.check_package(archive, ["localmoe/a.py", "localmoe/native/c.h"])


@pytest.mark.process
def test_the_package_of_a_tag_has_all_it_needs(tmp_path: Path) -> None:
    """Built from a clean clone; without the tag it is no release."""
    clone, version = tmp_path / "clone", release.version_of(ROOT)
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    with pytest.raises(release.ReleaseError, match="does not have the tag"):
        release.release(clone, tmp_path)
    changes = clone / "CHANGELOG.md"
    changes.write_text(CHANGELOG.replace("1.2.3", version))
    person = ("-c", "user.name=a", "-c", "user.email=a@b")
    subprocess.run(["git", *person, "commit", "--quiet", "-am", "x"], cwd=clone, check=True)
    subprocess.run(["git", "tag", "--force", f"v{version}"], cwd=clone, check=True)
    assert release.release(clone, tmp_path / "dist").stat().st_size > 1_000_000


def test_the_workflow_calls_what_there_is() -> None:
    """Each file and module that a step runs is in the tree."""
    workflow = (ROOT / ".github/workflows/test.yml").read_text("utf-8")
    runs = re.findall(r"^ +- run: (.+)$", workflow, re.M)
    assert {".ci/run", "python -m scripts.release"} < {*runs}
    assert (ROOT / ".ci/run").is_file()
    for module in re.findall(r"python -m (scripts\.\w+)", workflow):
        assert (ROOT / module.replace(".", "/")).with_suffix(".py").is_file()
