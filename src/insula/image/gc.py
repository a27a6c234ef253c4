# SPDX-License-Identifier: Apache-2.0
"""Remove layers that nothing uses.

The caller knows what uses them, and makes sure that no image is being made or received meanwhile: a layer comes before
the record of its image.
"""

from collections.abc import Iterable

from insula.image.layers import Layers
from insula.model.record import ContainerRecord, ImageRecord, LayerRecord


def collect(
    layers: Layers, *, images: Iterable[ImageRecord], containers: Iterable[ContainerRecord]
) -> list[LayerRecord]:
    """Remove the layers that are in no image and below no container.  Returns: the removed."""
    used = {layer.digest for image in images for layer in image.layers}
    used.update(digest for container in containers for digest in container.layers)
    unused = [layer for layer in layers.list() if layer.digest not in used]
    for layer in unused:
        layers.remove(layer.digest)
    return unused
