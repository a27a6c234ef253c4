# SPDX-License-Identifier: Apache-2.0
"""`python -m insula.cli`: the command without an installed script."""

import sys

from insula.cli.main import main

sys.exit(main())
