"""Folders of images without labels, for the ways to learn that need none."""

import os

from vit_jax.data.sources import image_files
from vit_jax.data.sources.image_files import EXTENSIONS, Walker
from vit_jax.data.sources.listings import Entry, Files, Listing, mixed
from vit_jax.data.sources.options import DEFAULT_OPTIONS, DataOptions
from vit_jax.errors import UserError
from vit_jax.words import shortened


class UnlabelledFolder:
    """The listing of one folder, while it is made: every image at any depth."""

    def __init__(self, path: str, options: DataOptions):
        self.path, self.options = path, options
        self.walker = Walker(options.rules)

    def listing(self) -> Listing:
        """Lists the images as one split, "train", of a data set without classes.

        Raises:
          UserError: there is no image, or an option about splits is set.
        """
        for name in ("splits", "hold_out"):
            value = getattr(self.options, name)
            if value != getattr(DEFAULT_OPTIONS, name):
                raise UserError(
                    f"data.{name}={value}: images without labels have no splits, "
                    "because nothing is evaluated on them; leave it out, and name the "
                    "folder to train on"
                )
        images, left_out = self.walker.find(self.path)
        if not images:
            endings = ", ".join(EXTENSIONS)
            raise UserError(
                f"no images in {self.path} or its folders. Images end in {endings}."
            )
        remarks = []
        if lost := [os.path.relpath(one, self.path) for one in self.walker.lost]:
            remarks.append(f"{image_files.LOST}: {shortened(lost, repr)}")
        return Listing(
            self.path,
            f"the folder {self.path}",
            (),
            {"train": Files.of(mixed(Entry(image, 0) for image in images))},
            "train",
            "train",
            left_out=dict(left_out),
            remarks=tuple(remarks),
        )
