"""`python -m lbw_bake` is `lbw`."""

from .cli import main

main()
