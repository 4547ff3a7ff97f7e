"""Converts weights from any format that vit_jax reads to one that it writes.

    python -m vit_jax.convert SOURCE DESTINATION --to=FORMAT [--patch_size=SIDE]

SOURCE is anything that vit_jax.load takes: a work directory, a file, a directory in
timm's or Hugging Face's format, a published name (python -m vit_jax.models),
hf:owner/name, a URL. SOURCE#entry=NAME names one of several models in a file.
FORMAT is google or big_vision (DESTINATION is a file NAME.npz), timm (a file
NAME.safetensors or a directory), huggingface (a directory), or mae, torchvision,
mmpretrain or vit_jax (a file NAME.safetensors). --merge adds LoRA adapters to the
kernels; without it, only vit_jax's own format can hold a model that has some.

FORMAT peft is for a model with LoRA adapters, and holds only these and what was trained
beside them. DESTINATION is a directory for the library that --names chooses.
"""

from collections.abc import Callable

from absl import flags

from vit_jax import command
from vit_jax.errors import UserError
from vit_jax.words import times

FLAGS = flags.FlagValues()
flags.DEFINE_string("to", None, "the format to write", flag_values=FLAGS)
flags.DEFINE_integer(
    "num_heads",
    None,
    "number of attention heads, for a file that does not record it",
    lower_bound=1,
    flag_values=FLAGS,
)
flags.DEFINE_list(
    "trained_image_size",
    None,
    "HEIGHT,WIDTH of the images that the positions belong to, for a file whose grid is "
    "not square",
    flag_values=FLAGS,
)
flags.DEFINE_integer(
    "decoder_heads",
    None,
    "number of attention heads of a masked autoencoder's decoder, for a file that does "
    "not record it",
    lower_bound=1,
    flag_values=FLAGS,
)
flags.DEFINE_bool(
    "normalize_pixels",
    None,
    "whether that decoder predicts pixels normalised within each patch, for a file "
    "that does not record it",
    FLAGS,
)
flags.DEFINE_string(
    "names",
    "",
    "for --to=peft, the names of a library's modules: transformers5, transformers4 or "
    "timm; by default those of the library that the base is a model of",
    flag_values=FLAGS,
)
flags.DEFINE_bool(
    "expand_rank",
    False,
    "for --to=peft --names=timm, write separate adapters of queries, keys and values "
    "as a single one of higher rank",
    FLAGS,
)
command.define_average(FLAGS)
command.define_outputs(FLAGS)
command.define_base(FLAGS)
flags.DEFINE_bool(
    "merge",
    False,
    "add LoRA adapters to the kernels, which every format can hold",
    flag_values=FLAGS,
)
command.define_patch_size(FLAGS)


def main(arguments: list[str]) -> None:
    """Runs the command; see the module's docstring."""
    if len(arguments) != 2 or not FLAGS.to:
        raise UserError(
            f"expected SOURCE DESTINATION --to=FORMAT, got {len(arguments)} "
            f"argument(s) and {'no --to' if not FLAGS.to else f'--to={FLAGS.to}'}. "
            "See --help."
        )
    from vit_jax.weights.adapter_directories import Peft, compared_with_base
    from vit_jax.weights.formats.known import FORMATS, OWN, find_format
    from vit_jax.weights.formats.peft_writing import check_names
    from vit_jax.weights.loading import load_weights, merged
    from vit_jax.weights.patch_size import at_patch_size
    from vit_jax.weights.saving import save_weights

    size = command.patch_size(FLAGS)
    if FLAGS.to not in OWN:
        find_format(FLAGS.to)  # before anything is downloaded
    _check_options(check_names)
    source, destination = arguments
    weights = load_weights(
        source,
        num_heads=FLAGS.num_heads,
        trained_image_size=_size(),
        ema=command.average(FLAGS),
        say_outputs=FLAGS.outputs is None,
        decoder_heads=FLAGS.decoder_heads,
        normalize_pixels=FLAGS.normalize_pixels,
        base=FLAGS.base,
    )
    if FLAGS.merge:
        weights = merged(weights)
    description = weights.description.read_as(FLAGS.outputs)
    weights = weights._replace(description=description)
    if size is not None:
        weights = at_patch_size(weights, size)
    peft = Peft()
    if FLAGS.to == "peft":
        beside = compared_with_base(*weights, load_weights, FLAGS.base)
        peft = Peft(FLAGS.names, FLAGS.expand_rank, beside)
    path = save_weights(
        weights.description, weights.params, destination, FLAGS.to, peft
    )
    title = FORMATS[FLAGS.to].title if FLAGS.to in FORMATS else OWN[FLAGS.to]
    a = weights.description.architecture
    print(
        f"wrote {path} in {title} format: {a.depth} blocks of width {a.width}, patches "
        f"{times(a.patch_size)}, images {times(a.image_size)}, {a.num_classes} classes"
    )


def _check_options(check_names: Callable[[str], None]) -> None:
    """Raises UserError for options that do nothing, or do not exist."""
    given = [name for name in ("names", "expand_rank") if getattr(FLAGS, name)]
    if given and FLAGS.to != "peft":
        raise UserError(
            f"--{' and --'.join(given)} only matters with --to=peft, got "
            f"--to={FLAGS.to}: omit it"
        )
    if FLAGS.to == "peft" and FLAGS.merge:
        raise UserError(
            "--merge leaves no adapters, and --to=peft writes nothing else: omit one"
        )
    if FLAGS.names:
        check_names(FLAGS.names)


def _size() -> tuple[int, int] | None:
    given = FLAGS.trained_image_size
    if given is None:
        return None
    sides = [int(side) for side in given if side.strip().isdecimal()]
    if len(sides) != len(given) or len(sides) not in (1, 2) or min(sides) < 1:
        raise UserError(
            f"--trained_image_size={','.join(given)}: expected one size, or "
            "HEIGHT,WIDTH, in pixels"
        )
    return sides[0], sides[-1]


if __name__ == "__main__":
    command.run(main, FLAGS)
