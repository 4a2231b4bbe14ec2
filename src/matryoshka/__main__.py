"""`python -m matryoshka`: the command, as torchrun starts it."""

from matryoshka.cli import main

main()
