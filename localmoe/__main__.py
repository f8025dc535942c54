"""``python -m localmoe``."""

from localmoe.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
