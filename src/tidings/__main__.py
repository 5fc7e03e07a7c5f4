"""``python -m tidings`` is ``tidings``."""

from .cli import main

if __name__ == "__main__":
    main()
