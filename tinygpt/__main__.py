"""`python -m tinygpt` is the same as the command `tinygpt`."""

import sys

from tinygpt.cli import command

if __name__ == "__main__":
    sys.exit(command())
