# SPDX-License-Identifier: Apache-2.0
"""insula: one Linux host becomes many isolated systems that can be carried, running, to another host."""

__version__ = "0.1.0"
