"""The images in a folder that is to be predicted, found one by one."""

import os
from collections import Counter
from collections.abc import Iterator


def images_in(
    folder: str, left_out: Counter[str] | None = None
) -> Iterator[str | OSError]:
    """Yields the paths of the images in a folder, at any depth, in order.

    Which files are images and which links are followed is decided as in training. In
    place of a folder that cannot be listed, the error is yielded. Only the names in the
    folders on the way to the current one are in memory.

    Args:
      folder: the folder.
      left_out: counts the other files by reason.
    """
    return _within(folder, (folder,), Counter() if left_out is None else left_out)


def _within(
    folder: str, passed: tuple[str, ...], left_out: Counter[str]
) -> Iterator[str | OSError]:
    from vit_jax.data.sources import image_files

    walker = image_files.Walker()  # a new one, because it keeps what it has listed
    try:
        folders, files, skipped = walker.scan(folder)
    except OSError as error:
        yield error
        return
    left_out.update(skipped)
    within = set(folders)
    for name in sorted(folders + files):
        path = os.path.join(folder, name)
        if name not in within:
            if walker.sort_out(name, left_out):
                yield path
        elif os.path.islink(path) and any(
            image_files.contains(path, one) for one in passed
        ):
            left_out[image_files.LOOPS] += 1
        else:
            yield from _within(path, (*passed, path), left_out)
