"""python -m matryoshka.cli: the same command as python -m matryoshka."""

from matryoshka.cli import main

main()
