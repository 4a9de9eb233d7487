"""The command `loraplex`, also as `python -m loraplex.server`."""

from __future__ import annotations

import sys


def main() -> None:
    try:
        # Not above: the imports take half a second, in which people press Ctrl-C.
        from loraplex.server import cli

        cli.main()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
