"""``python -m whet`` is the ``whet`` command."""

from whet.cli.main import main

main()
