# SPDX-License-Identifier: Apache-2.0
"""What labels may be: they are kept in insulad's own store, beside every limit of a tenant's disk."""

from collections.abc import Mapping

from insula.model.errors import InvalidSpec

MAX_LABELS = 64
MAX_LABELS_BYTES = 16 << 10


def check_labels(labels: Mapping[str, str]) -> None:
    """Refuse labels that are too many, or too long together.  Raises: InvalidSpec."""
    if len(labels) > MAX_LABELS:
        raise InvalidSpec(f"cannot use {len(labels)} labels", hint=f"at most {MAX_LABELS}")
    length = sum(len(word.encode()) for label in labels.items() for word in label)
    if length > MAX_LABELS_BYTES:
        raise InvalidSpec(
            f"cannot use labels of {length} bytes",
            hint=f"at most {MAX_LABELS_BYTES >> 10} KiB together: put what is longer into a file of a volume",
        )
