"""What the README shows is what happens."""

import doctest
import re
from pathlib import Path

import tinygpt
from tinygpt.model import recipes
from tinygpt.model.transformer import count

ROOT = Path(__file__).parents[1]
PACKAGES = Path(tinygpt.__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_snippets_print_what_stands_below_them():
    session = "\n".join(re.findall(r"```python\n(>>>.*?)```", README, flags=re.DOTALL))
    test = doctest.DocTestParser().get_doctest(session, {}, "README.md", "README.md", 0)
    assert len(test.examples) > 5
    assert doctest.DocTestRunner().run(test).failed == 0


def test_the_table_of_recipes_is_true():
    row = r"^\| `([\w.-]+)` \| ([\d,]+) \|.*?\| ([\d,]+) \|"
    rows = re.findall(row, README, flags=re.MULTILINE)
    table = {
        name: (int(n.replace(",", "")), int(tokens.replace(",", ""))) for name, n, tokens in rows
    }
    assert table == {
        name: (sum(count(c)), c.tokens_per_step) for name, c in recipes.RECIPES.items()
    }


def test_every_file_that_a_page_points_to_exists():
    for page in [
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        *(ROOT / "docs").glob("*.md"),
        ROOT / "benchmarks" / "README.md",
    ]:
        for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            target = (page.parent / link).resolve()
            installed = PACKAGES / target.relative_to(
                ROOT
            )  # where the tests run without a checkout's
            assert target.exists() or installed.exists(), f"{page.name}: {link}"
