"""``python -m anyreach``."""

import sys

from anyreach.cli import main

if __name__ == "__main__":
    sys.exit(main())
