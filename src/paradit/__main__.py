"""`python -m paradit`, and so `torchrun -m paradit`."""

from paradit.cli.main import main

main()
