# SPDX-License-Identifier: Apache-2.0
"""The matrix: unmodified programs, each carried several times between two hosts under its own client's load."""
