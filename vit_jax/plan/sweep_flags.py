"""The flags of sweeps over patches, image sizes or variants; imports no JAX."""

from absl import flags

# Flags that only these sweeps have.
NAMES = ("csv", "plot", "measure", "variant", "image_size")


def define(own: flags.FlagValues) -> None:
    """Defines the flags of these sweeps."""
    flags.DEFINE_string(
        "csv", "", "with --sweep=patch, size or variant: also write FILE.csv", own
    )
    flags.DEFINE_string(
        "plot", "", "with these sweeps: also draw FILE.svg or FILE.png", own
    )
    flags.DEFINE_integer(
        "measure",
        0,
        "with these sweeps: measure a forward pass of so many images on this machine's "
        "first device",
        lower_bound=0,
        flag_values=own,
    )
    flags.DEFINE_string(
        "variant", None, "with these sweeps and no recipe; default: B/16", own
    )
    flags.DEFINE_list(
        "image_size",
        None,
        "with these sweeps and no recipe: SIDE or HEIGHT,WIDTH; default: 224",
        flag_values=own,
    )
