# SPDX-License-Identifier: Apache-2.0
"""What must not be possible: the numbered checks of README.md, tried on real daemons and in real containers."""
