"""``python -m detcli``."""

from detcli.cli import main

main()
