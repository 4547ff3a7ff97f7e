"""The images in a folder that is to be predicted."""

import os
from collections.abc import Iterator


def images_in(folder: str) -> Iterator[str | OSError]:
    """Yields the paths of the images in a folder, at any depth, in order.

    Links to folders are followed, unless they lead back to a folder that contains
    them. Hidden files and folders are left out. In place of a folder that cannot be
    listed, the error is yielded. Only the names in the folders on the way to the
    current one are in memory.
    """
    return _within(folder, (os.path.realpath(folder),))


def _within(folder: str, above: tuple[str, ...]) -> Iterator[str | OSError]:
    from vit_jax.data.sources.folders import EXTENSIONS

    try:
        with os.scandir(folder) as entries:
            found = sorted(
                (entry.name, entry.is_dir())
                for entry in entries
                if not entry.name.startswith(".")
            )
    except OSError as error:
        yield error
        return
    for name, is_folder in found:
        path = os.path.join(folder, name)
        if is_folder:
            real = os.path.realpath(path)
            if real not in above:
                yield from _within(path, (*above, real))
        elif name.lower().endswith(EXTENSIONS):
            yield path
