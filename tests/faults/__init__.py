# SPDX-License-Identifier: Apache-2.0
"""Moves under faults: `make faults`."""
