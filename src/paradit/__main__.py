"""Entry point of `python -m paradit`, and so of `torchrun -m paradit`."""

from paradit.cli.main import main

if __name__ == "__main__":  # ranks that are started import this module again
    main()
