"""``python -m qsearch``."""

from __future__ import annotations

from qsearch.cli import main

if __name__ == "__main__":
    main()
