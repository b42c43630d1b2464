"""`python -m bench.publish RESULTS.json`: make a run the one that the documentation shows.

The results go to bench/results/published.json, the tables and pictures to docs/benchmarks.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Final

from bench.figures import FiguresError, Results, load
from bench.plots import draw
from bench.report import summary
from bench.systems import REPOSITORY

PUBLISHED: Final = REPOSITORY / "bench" / "results" / "published.json"
PAGES: Final = REPOSITORY / "docs" / "benchmarks"
TABLES: Final = PAGES / "tables.md"


def tables(results: Results) -> str:
    """Give the text of the file with the tables."""
    return "<!-- Written by python -m bench.publish. -->\n\n" + summary(results)


def main() -> int:
    """Write all of it; 2 when the file does not hold results."""
    parser = argparse.ArgumentParser(prog="python -m bench.publish", description=__doc__)
    parser.add_argument("results", type=Path)
    try:
        results = load(parser.parse_args().results)
    except (FiguresError, OSError) as error:
        print(f"bench.publish: {error}", file=sys.stderr)
        return 2
    results.save(PUBLISHED)
    for old in (*PAGES.glob("*.png"), *PAGES.glob("*.svg")):
        old.unlink()
    draw(results, PAGES)
    TABLES.write_text(tables(results))
    print(f"written: {PUBLISHED}, {PAGES}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
