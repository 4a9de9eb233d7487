"""`python -m loraplex.server` is `loraplex`."""

from loraplex.server.cli import main

main()
