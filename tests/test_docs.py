"""What the documents say of the tree and of themselves is so."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
IN_CODE = re.compile(r"environ(?:ment)?\b[^\n]*?[\"']([A-Z][A-Z_]+)[\"']")
INTERNAL = {
    "CMAKE_BUILD_PARALLEL_LEVEL",
    "COLUMNS",
    "GGML_NO_BACKTRACE",
    "LD_PRELOAD",
    "SSH_CONNECTION",
    "TERM",
    "TMUX",
}


def test_the_index_has_every_page() -> None:
    """docs/README.md names each page of the folder, and no other."""
    named = set(re.findall(r"\]\(([\w-]+\.md)\)", (DOCS / "README.md").read_text("utf-8")))
    assert named == {page.name for page in PAGES} - {"README.md"}


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md"])
def test_links_lead_somewhere(page: Path) -> None:
    """Every relative link of a page is a file or a folder that is there."""
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text("utf-8"))
    for link in links:
        if "://" not in link:
            assert (page.parent / link).exists(), link


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_trees_are_the_folders(page: str) -> None:
    """The rooms that a page lists are the folders of the package, each once."""
    text = (ROOT / page).read_text("utf-8")
    block = next(b for b in re.findall(r"```\n(.*?)```", text, re.S) if "planning/" in b)
    named = re.findall(r"^(?:  |localmoe/)([a-z]+)/(?: |$)", block, re.M)
    rooms = {path.parent.name for path in (ROOT / "localmoe").glob("*/__init__.py")}
    assert sorted(named) == sorted(rooms)


def test_environment_variables_are_documented() -> None:
    """Every variable that the code reads is in docs/configuration.md."""
    page = (DOCS / "configuration.md").read_text("utf-8")
    sources = [p for p in (ROOT / "localmoe").rglob("*.py") if "worker" not in p.parts]
    read = {name for path in sources for name in IN_CODE.findall(path.read_text("utf-8"))}
    assert {"LOCALMOE_DEBUG", "LOCALMOE_STOCK_MMAP"} <= read
    assert [name for name in sorted(read - INTERNAL) if f"`{name}" not in page] == []


def test_files_that_the_pages_name_are_there() -> None:
    """A path of the package, the scripts or the tests in a page is a file of this tree."""
    pages = [*DOCS.rglob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
    for page in pages:
        for path in re.findall(r"`((?:localmoe|scripts|tests)/[\w/.]+)`", page.read_text("utf-8")):
            assert (ROOT / path).exists(), f"{page.name}: {path}"


@pytest.mark.process
def test_the_version_stands_in_one_place() -> None:
    """Nothing but ``localmoe/__init__.py`` says which version this is."""
    from localmoe import __version__

    found = subprocess.run(
        ["git", "grep", "-lF", __version__, "--", "*.py", "*.toml", "*.md"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if found.returncode > 1:
        pytest.skip("not a git checkout")
    others = {name for name in found.stdout.split() if name != "CHANGELOG.md"}
    assert others == {"localmoe/__init__.py"}


def test_every_package_is_installed() -> None:
    """What pyproject.toml lists is what there is: a new folder works after `pip install .` too."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    listed = project["tool"]["setuptools"]["packages"]
    there = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for path in (ROOT / "localmoe").rglob("__init__.py")
    }
    assert sorted(listed) == sorted({*there, "localmoe_models"})
