"""Who may see what, and what is said to those who may not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import constants

from localmoe.errors import TransferError, UnknownModelError
from localmoe.hub import client, names
from localmoe.hub.listing import list_files
from tests.hub.command import HubCommand
from tests.hub.content import Generated
from tests.hub.pulling import FILE, QUICK, REPO, SIZE, lookup, pull, sha256
from tests.hub.server import Fault, HubServer

TOKEN = "hf_" + "secretsecretsecretsecretsecretse"
OTHER = "hf_" + "anotheranotheranotheranotherano"


@pytest.fixture
def gated(hub: HubServer) -> Generated:
    """A gated repository that TOKEN may read; OTHER is a valid token of somebody else."""
    content = Generated(SIZE, b"GGUF")
    hub.add(REPO, {FILE: content}, gated=True, readers=frozenset({TOKEN}))
    hub.tokens.add(OTHER)
    return content


def test_gated_without_a_token(hub: HubServer, hf: Path, gated: Generated) -> None:
    """Says that it is gated, the page to visit, and how to log in."""
    with pytest.raises(TransferError, match="gated") as caught:
        pull()
    hint = caught.value.hint or ""
    assert f"{hub.url}/{REPO}" in hint
    assert "hf auth login" in hint


def test_gated_for_this_account(
    hub: HubServer, hf: Path, gated: Generated, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A valid token without access: the page to visit, and no advice to log in again."""
    monkeypatch.setenv("HF_TOKEN", OTHER)
    with pytest.raises(TransferError, match="gated") as caught:
        pull()
    hint = caught.value.hint or ""
    assert f"{hub.url}/{REPO}" in hint
    assert "login" not in hint


@pytest.mark.parametrize("where", ["variable", "login"])
def test_a_token_opens_it_and_goes_to_the_hub_alone(
    hub: HubServer, gated: Generated, localmoe: HubCommand, where: str
) -> None:
    """``HF_TOKEN`` and ``hf auth login`` work; no other host sees the token, and no screen."""
    env = {"LOCALMOE_DEBUG": "1"}
    if where == "variable":
        env["HF_TOKEN"] = TOKEN
    else:
        (localmoe.home / "hf").mkdir()
        (localmoe.home / "hf" / "token").write_text(TOKEN)
    done = localmoe("pull", REPO, "--yes", **env)
    assert done.returncode == 0, done.stderr
    assert sha256(Path(done.stdout.strip())) == gated.sha256
    asked = hub.seen(host="hub")
    assert {r.headers.get("authorization") for r in asked} == {f"Bearer {TOKEN}"}
    stored = hub.seen(host="storage")
    assert stored
    assert not any(TOKEN in str(r.headers) or TOKEN in r.path for r in stored)
    assert TOKEN not in done.stdout + done.stderr


@pytest.mark.parametrize("token", ["hf_wrong", "hf_with space", "hf_é"])
def test_a_wrong_token_is_said_and_not_shown(
    hub: HubServer, localmoe: HubCommand, token: str
) -> None:
    """One line, exit 5, what to do; the token itself appears nowhere, not even when debugging."""
    hub.add(REPO, {FILE: Generated(SIZE)})
    done = localmoe("pull", REPO, "--yes", HF_TOKEN=token, LOCALMOE_DEBUG="1")
    assert done.returncode == 5
    assert "token" in done.stderr
    assert "hf auth login" in done.stderr
    assert token not in done.stderr


def test_no_token_where_none_is_wanted(
    hub: HubServer, hf: Path, gated: Generated, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``HF_HUB_DISABLE_IMPLICIT_TOKEN`` keeps it at home."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", True)
    lookup()
    assert "authorization" not in hub.requests[0].headers


def test_nothing_but_the_version_is_told(hub: HubServer, hf: Path, gated: Generated) -> None:
    """No telemetry: one request for the listing, and a plain user agent."""
    lookup()
    (request,) = hub.requests
    assert request.headers["user-agent"].startswith("localmoe/")
    assert ";" not in request.headers["user-agent"]


@pytest.mark.process
def test_the_network_library_is_imported_when_it_is_needed() -> None:
    """Commands that ask the Hub nothing do not wait for huggingface_hub and its HTTP client."""
    code = "import sys, localmoe.cli.pull, localmoe.cli.rm; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"huggingface_hub", "httpx2"} & set(done.stdout.split())


@pytest.mark.parametrize("repo", ["user/nothing", "user/hidden"])
def test_missing_and_private_look_alike(hub: HubServer, hf: Path, repo: str) -> None:
    """The Hub does not tell strangers; we say both, with exit 2."""
    hub.add("user/hidden", {FILE: b"GGUF"}, private=True)
    with pytest.raises(UnknownModelError, match="private") as caught:
        lookup(repo)
    assert caught.value.hint and "hf auth login" in caught.value.hint


def test_a_typo_gets_the_nearest_names(hub: HubServer, hf: Path) -> None:
    """A repository that is not there, but is nearly one of the catalog's."""
    with pytest.raises(UnknownModelError, match="ggml-org/gpt-oss-20b-GGUF"):
        lookup("ggml-org/gpt-oss-20-GGUF")


def test_a_stale_entry_is_ours(hub: HubServer, hf: Path) -> None:
    """An alias whose repository is gone is our mistake, and is said to be."""
    with pytest.raises(UnknownModelError, match="stale"):
        lookup("gpt-oss-20b")


def test_an_unknown_revision(hub: HubServer, hf: Path) -> None:
    """A branch, tag or commit that the repository lacks."""
    hub.add(REPO, {FILE: b"GGUF"})
    reference = names.Reference(REPO, REPO, revision="v9")
    with pytest.raises(UnknownModelError, match="revision v9"):
        list_files(reference, QUICK)


def test_a_revision_is_kept_under_its_name(hub: HubServer, hf: Path) -> None:
    """A tag is listed, and downloaded, at its own commit."""
    repository = hub.add(REPO, {FILE: b"GGUF old"})
    repository.refs["v1"] = repository.refs["main"]
    repository.commit({FILE: b"GGUF new"})
    listing = list_files(names.Reference(REPO, REPO, revision="v1"), QUICK)
    assert listing.commit == repository.refs["v1"]
    assert listing.files[0].size == 8


def test_offline_is_said(hub: HubServer, localmoe: HubCommand) -> None:
    """``HF_HUB_OFFLINE``: no request, exit 5, how to go online."""
    hub.add(REPO, {FILE: Generated(SIZE)})
    done = localmoe("pull", REPO, "--yes", HF_HUB_OFFLINE="1")
    assert done.returncode == 5
    assert "HF_HUB_OFFLINE" in done.stderr
    assert "hint: unset HF_HUB_OFFLINE" in done.stderr
    assert not hub.requests


@pytest.mark.parametrize("trouble", ["offline", "down"])
def test_without_the_hub_what_is_here_counts(
    hub: HubServer, localmoe: HubCommand, trouble: str
) -> None:
    """A model that was pulled before is found offline, and when the Hub is down."""
    hub.add(REPO, {FILE: Generated(SIZE)})
    path = localmoe("pull", REPO, "--yes").stdout
    env = {"HF_HUB_OFFLINE": "1"}
    if trouble == "down":
        hub.fault("api", REPO, Fault(status=404, headers={"X-Error-Message": "odd"}))
        env = {}
    done = localmoe("pull", REPO, "--yes", **env)
    assert (done.returncode, done.stdout) == (0, path)
    assert "what is here" in done.stderr


def test_a_host_that_is_not_there(localmoe: HubCommand) -> None:
    """A wrong ``HF_ENDPOINT``: exit 5, and the address that was tried."""
    done = localmoe("pull", REPO, "--yes", HF_ENDPOINT="http://127.0.0.1:9")
    assert done.returncode == 5
    assert "cannot reach 127.0.0.1: connection refused\n" in done.stderr
    assert "HF_ENDPOINT" in done.stderr


def test_proxies_are_used(hub: HubServer, localmoe: HubCommand) -> None:
    """With ``HTTP_PROXY`` the Hub need not be reachable, nor have an address."""
    content = Generated(SIZE)
    hub.add(REPO, {FILE: content})
    env = {"HTTP_PROXY": hub.url, "NO_PROXY": "127.0.0.2", "HF_ENDPOINT": "http://hub.invalid"}
    done = localmoe("pull", REPO, "--yes", **env)
    assert done.returncode == 0, done.stderr
    assert sha256(Path(done.stdout.strip())) == content.sha256
    assert hub.requests[0].path.startswith("http://hub.invalid/api/models/")


def test_an_answer_that_is_no_hub(hub: HubServer, hf: Path) -> None:
    """Something else at the address: said so, with the variable to check."""
    hub.add(REPO, {FILE: b"GGUF"})
    for sha in ("", "nonsense", "../../x"):
        hub.repositories[REPO].refs["main"] = sha
        hub.repositories[REPO].revisions[sha] = {}
        with pytest.raises(TransferError) as caught:
            lookup()
        assert "HF_ENDPOINT" in (caught.value.hint or "")


def test_a_busy_hub_is_asked_again(hub: HubServer, hf: Path) -> None:
    """Two 503s and a 429 before the listing."""
    hub.add(REPO, {FILE: b"GGUF"})
    faults = (Fault(status=503, times=1), Fault(status=429, times=1))
    hub.fault("api", REPO, *faults)
    listing, _ = lookup()
    assert [f.path for f in listing.files] == [FILE]
    hub.fault("api", REPO, Fault(status=503))
    with pytest.raises(TransferError, match="503"):
        lookup()


FAILURES = [Fault(500, times=3), Fault(502, times=3), Fault(drop_after=0, times=3)]


@pytest.mark.parametrize("fault", FAILURES)
def test_a_listing_survives_three_failures(
    fault: Fault, hub: HubServer, hf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the patience of `fit` and `pull`: the fourth answer counts, after pauses of seconds."""
    pauses: list[float] = []
    monkeypatch.setattr(client.Deadline, "sleep", lambda _, seconds: pauses.append(seconds))
    hub.add(REPO, {FILE: b"GGUF"})
    hub.fault("api", REPO, fault)
    listing = list_files(names.Reference(REPO, REPO))
    assert [f.path for f in listing.files] == [FILE]
    assert len(pauses) == 3
    assert sum(pauses) < 5


def test_the_name_of_the_folder_is_the_hubs(hub: HubServer, hf: Path) -> None:
    """Case in a name does not matter to the Hub; the cache has one folder all the same."""
    hub.add(REPO, {FILE: Generated(SIZE)})
    hub.repositories["USER/Repo"] = hub.repositories[REPO]
    pull("USER/Repo")
    assert [p.name for p in hf.glob("models--*")] == ["models--user--repo"]
