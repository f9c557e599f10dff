"""`python -m minitensor.gradcheck [OP ...]`: every registered op against finite differences.

Prints a table and exits with status 1 if a gradient is wrong. The function for gradients of your
own is `minitensor.gradcheck` (in check.py).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from minitensor.check import TOLERANCE, check_op
from minitensor.tensor import registry


def main(names: Sequence[str]) -> int:
    """Print the table for the named ops, or all; 0 if every gradient is right, 1 if not, 2 for an
    unknown name."""
    unknown = [name for name in names if name not in registry]
    if unknown:
        print(
            f"gradcheck: no op is called {unknown[0]!r}; there are {', '.join(sorted(registry))}",
            file=sys.stderr,
        )
        return 2
    failed = 0
    print(f"{'op':<34}{'cases':>6}{'worst relative error':>24}  result")
    for name in names or sorted(registry):
        cases, worst = check_op(registry[name])
        passed = worst.error <= TOLERANCE
        failed += not passed
        print(f"{name:<34}{cases:>6}{worst.error:>24.1e}  {'pass' if passed else 'FAIL'}")
        if not passed:
            print(
                f"    input {worst.input} at {list(worst.at)}: the backward says "
                f"{worst.claimed:.9g}, differences say {worst.measured:.9g}"
            )
    print(
        f"{failed} of {len(names or registry)} ops failed"
        if failed
        else f"all {len(names or registry)} ops pass at {TOLERANCE:.0e}"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
