"""What some tests need of the system. In CI they fail without it, where it ought to be there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NoReturn

import pytest

from localmoe.facts.cgroup import own_groups

_SYS_ADMIN = 1 << 21  # CAP_SYS_ADMIN of capabilities(7): who has it may mount


def missing(what: str, *, expected: bool = True) -> NoReturn:
    """Skip this test for want of ``what``, and say so; in CI (``CI`` is set) fail if ``expected``.

    ``expected``: whether a system of this kind has it, so that its absence is a mistake of ours.
    """
    if os.environ.get("CI") and expected:
        pytest.fail(f"needed in CI: {what}")
    pytest.skip(what)


def no_control_group() -> NoReturn:
    """None could be made: expected of root where the kernel's groups are mounted."""
    mounted = bool(own_groups("memory") or own_groups(None))
    missing("no control group can be made here", expected=mounted and os.geteuid() == 0)


def no_mount(why: object) -> NoReturn:
    """A file system of our own could not be mounted: expected of who has the right to."""
    missing(f"no file system can be mounted here: {why}", expected=_may_mount())


def _may_mount() -> bool:
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return False
    effective = [line.split()[1] for line in status.splitlines() if line.startswith("CapEff:")]
    return any(int(number, 16) & _SYS_ADMIN for number in effective)
