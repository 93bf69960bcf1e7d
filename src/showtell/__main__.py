"""``python -m showtell`` is the ``showtell`` command."""

from showtell.cli import main

main()
