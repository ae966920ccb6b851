"""`python -m aicert`: the command line."""

from aicert.cli import main

if __name__ == "__main__":
    main()
