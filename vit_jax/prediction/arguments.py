"""Images that are named on a command line: how many, and how their values are read."""

import logging
import os
from collections import Counter
from collections.abc import Sequence

from vit_jax.data.sources.image_files import in_words
from vit_jax.data.sources.options import DEFAULT_OPTIONS
from vit_jax.errors import Problems, UserError
from vit_jax.prediction.folders import images_in
from vit_jax.prediction.inputs import is_address, nothing_at

logger = logging.getLogger(__name__)


def count(arguments: Sequence[str]) -> int:
    """Counts the images that the arguments stand for.

    Raises:
      UserError: names every path that does not exist, and every folder without images.
    """
    total, problems = 0, []
    left_out: Counter[str] = Counter()
    for argument in arguments:
        path = os.path.expanduser(argument)
        if is_address(argument):
            total += 1
        elif not os.path.exists(path):
            problems.append(nothing_at(argument))
        elif not os.path.isdir(path):  # such as a pipe
            total += 1
        elif not (within := sum(1 for _ in images_in(path, left_out))):
            problems.append(f"{argument}: the folder contains no images")
        else:
            total += within
    if problems:
        raise Problems(*problems)
    if left_out:
        logger.info("files in the folders that are no images: %s", in_words(left_out))
    return total


def white_level(texts: Sequence[str]) -> float:
    """Reads --data, of which only the value of white concerns single images.

    Raises:
      UserError: it names something else.
    """
    options = DEFAULT_OPTIONS.with_flags(texts)
    if options != DEFAULT_OPTIONS.changed({"white_level": options.white_level}):
        raise UserError(
            f"--data={', '.join(texts)}: images are taken one by one here, so only "
            "white_level=VALUE applies"
        )
    return options.white_level
