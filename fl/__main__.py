"""`python -m fl` is `fl`."""

from fl.cli import main

if __name__ == "__main__":
    main()
