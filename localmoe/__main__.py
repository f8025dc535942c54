"""``python -m localmoe``, and where the installed command begins."""

from __future__ import annotations

import gc
import signal


def main() -> int:
    """Run a command. Ctrl-C before its beginning, or after its end, prints no traceback."""
    before = signal.getsignal(signal.SIGINT)
    ours = before is signal.default_int_handler  # else SIGINT is ignored, and stays ignored
    if ours:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from localmoe.cli.main import main as run
    from localmoe.errors import INTERRUPTED
    from localmoe.terminal import watchdog

    watchdog.watch()
    try:
        if ours:
            signal.signal(signal.SIGINT, before)
        code = run()
    except KeyboardInterrupt:
        code = INTERRUPTED
    finally:
        if ours:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
    watchdog.end(code)
    gc.freeze()  # or the interpreter looks through all objects again before it ends
    return code


if __name__ == "__main__":
    raise SystemExit(main())
