"""`python -m nexcache.cli`."""

from nexcache.cli import main

main()
