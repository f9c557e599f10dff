"""The page of all options and keys is what the programs say."""

import runpy
from pathlib import Path

from tinygpt.model.config import TYPES

DOCS = Path(__file__).parents[1] / "docs"


def test_the_page_of_options_is_true_and_lacks_nothing():
    script = runpy.run_path(str(DOCS / "make_reference.py"))
    page = (DOCS / "reference.md").read_text(encoding="utf-8")
    assert page == script["page"](), "run: python docs/make_reference.py"
    assert all(f"| `{key}` |" in page for key in TYPES)
    assert all(" |  |" not in line for line in page.splitlines()), "something is not explained"
