"""Names of files for results of images."""

import os
import urllib.parse

from vit_jax.prediction.inputs import is_address

# Characters: file systems limit names to 255 bytes, and one may take four.
_LONGEST = 50


class FileNames:
    """Names for the results of images, each given once."""

    def __init__(self):
        self._taken: set[str] = set()

    def __call__(self, image: str) -> tuple[str, str]:
        """Returns an unused stem of a file's name, and the image's ending.

        Of images whose `safe_name` is equal, later ones get a number.
        """
        stem, suffix = safe_name(image)
        name, number = stem, 1
        while name.casefold() in self._taken:  # some file systems ignore case
            number += 1
            name = f"{stem}-{number}"
        self._taken.add(name.casefold())
        return name, suffix


def safe_name(image: str) -> tuple[str, str]:
    """Returns the stem of a file's name and its ending: letters, digits, "-", "_", ".".

    For example, `safe_name("a b/c d.JPG") == ("c_d", ".jpg")`.

    Args:
      image: the name of an input: a path, an address, or "image 3".
    """
    if is_address(image):
        image = urllib.parse.unquote(urllib.parse.urlsplit(image).path)
    stem, suffix = os.path.splitext(os.path.basename(image))
    kept = "".join(c if c.isalnum() or c in "-_." else "_" for c in stem[:_LONGEST])
    return kept.strip(".") or "image", suffix.lower()
