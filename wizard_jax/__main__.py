"""`python -m wizard_jax` is the `wizard` command."""

import sys

from wizard_jax.cli import main

sys.exit(main())
