"""`python -m mbrl` is the command `mbrl`."""

from mbrl.cli.main import main

if __name__ == "__main__":
    main()
