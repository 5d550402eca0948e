# SPDX-License-Identifier: Apache-2.0
"""``python -m gossamer``: the ``gossamer`` command."""

import sys

from gossamer.cli import main

sys.exit(main())
