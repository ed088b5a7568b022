"""``python -m molecule_workspace`` is the command ``molecule-workspace``."""

import sys

from molecule_workspace.cli.main import main

sys.exit(main())
