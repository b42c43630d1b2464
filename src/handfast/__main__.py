"""Run as `python -m handfast`."""

import sys

from handfast.cli import main

if __name__ == "__main__":
    sys.exit(main())
