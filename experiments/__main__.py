"""``python -m amc_compress``: the command line."""

from amc_compress.cli import main

if __name__ == "__main__":
    main()
