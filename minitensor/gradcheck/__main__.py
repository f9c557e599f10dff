"""`python -m minitensor.gradcheck [OP ...]`: every registered op against finite differences."""

import sys

from minitensor.gradcheck import main

sys.exit(main(sys.argv[1:]))
