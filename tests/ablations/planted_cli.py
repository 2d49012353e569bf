"""`ablate` with the planted study only; run as a script by tests that need a process of their own."""

import sys

import planted

if __name__ == "__main__":
    from ablations.cli import main

    planted.install()
    sys.exit(main())
