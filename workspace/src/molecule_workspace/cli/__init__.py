"""The command ``molecule-workspace``: arguments, output and exit codes around the library."""
