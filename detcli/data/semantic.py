"""Labels of pixels in a folder: a PNG file a picture, whose grey values are labels.

So are COCO-stuff's stuffthingmaps: https://github.com/nightrome/cocostuff, with 0 to 181, and 255 for unlabelled.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from detcli.data.annotations import Source
from detcli.data.images import Pixels
from detcli.data.panoptic import decode_png
from detcli.errors import DetcliError


class SemanticMaps:
    """The labels of each pixel of a dataset's pictures, `UNLABELLED` where nobody has labelled it.

    The file of ``name.jpg`` is ``name.png`` in the folder.
    """

    def __init__(self, folder: str, source: Source, indices: NDArray[np.int64]) -> None:
        """Find the files of the pictures `indices` of `source`.

        Raises `DetcliError` naming one that is not there.
        """
        self._folder = Path(folder).expanduser()
        if not self._folder.is_dir():
            raise DetcliError(f"{folder}, data.semantic, is no folder.")
        missing = [name for name in map(source.file_name, indices.tolist()) if not self._path(name).is_file()]
        if missing:
            raise DetcliError(
                f"{self._folder} has no labels of {missing[0]}: {self._path(missing[0]).name} is missing "
                f"({len(missing)} such pictures of {source.name})."
            )

    def read(self, name: str, size: tuple[int, int]) -> Pixels:
        """Return the labels, uint8 [H,W], of the picture `name` of `size` (height, width).

        Raises `DetcliError` when its file is no PNG of 8-bit grey, or of another size.
        """
        path = self._path(name)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise DetcliError(f"can't read {path}: {error.strerror}.") from None
        return decode_png(data, size, path, "grey")

    def _path(self, name: str) -> Path:
        return self._folder / Path(name).with_suffix(".png")
