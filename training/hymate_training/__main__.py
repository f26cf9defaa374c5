"""`python -m hymate_training`: the `hymate` command for launchers such as torchrun."""

import sys

from hymate_training.cli.main import main

sys.exit(main())
