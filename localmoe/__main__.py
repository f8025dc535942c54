"""``python -m localmoe``, and where the installed command begins."""

from __future__ import annotations

import signal


def main() -> int:
    """Run a command; Ctrl-C before it has begun ends the process without a word."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:  # else it is ignored, and stays so
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from localmoe.cli.main import main as run

    signal.signal(signal.SIGINT, before)
    return run()


if __name__ == "__main__":
    raise SystemExit(main())
