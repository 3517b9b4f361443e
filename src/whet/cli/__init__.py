"""The ``whet`` command: one file a command.

Every file here imports only Typer at its top, so that ``--help`` answers at once; what a command needs is imported in
its body, when it runs. ``tests/e2e/test_cli.py`` proves it by looking at ``sys.modules``.
"""
