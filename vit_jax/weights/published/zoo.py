"""The table of published weights, one row per model, built from tables of facts.

Uncertain facts are left out. Accuracies are the reported ones, each with its protocol;
none was measured with this package.
"""

import dataclasses
import itertools
import re
from collections.abc import Iterator
from typing import Any

from vit_jax.models import architecture_from_variant, parse_variant
from vit_jax.models.decoder import DecoderFacts
from vit_jax.weights.published import zoo_facts as facts
from vit_jax.weights.published.families import (
    CLASSES,
    FAMILIES,
    Accuracy,
    Mirror,
    Published,
)

HUB = "https://huggingface.co"
BUCKETS = "https://storage.googleapis.com"
_VIT_MODELS = f"{BUCKETS}/vit_models"
_FACEBOOK = "https://dl.fbaipublicfiles.com"

# File names of AugReg: pretraining, then fine-tuning if any.
_AUGREG = re.compile(
    r"(?P<model>\w+)-(?P<data>i1k|i21k)-(?:30|300)ep-lr_0\.001"
    r"-aug_(?:none|light[01]|medium[12]|strong[12])-wd_0\.(?:1|03)-do_0\.[01]-sd_0\.[01]"
    r"(?:--(?P<tuned>cifar100|imagenet2012|kitti|oxford_iiit_pet|resisc45)"
    r"-steps_(?:0|2|10|20)k-lr_0\.(?:001|003|01|03)-res_(?P<size>224|384))?"
)


def augreg(name: str) -> Published | None:
    """Makes the row of an AugReg file name without suffix; None for any other name.

    There are 52,268 such files (arXiv:2106.10270); the table has only a few.
    """
    match = _AUGREG.fullmatch(name)
    variant = match and _AUGREG_VARIANTS.get(match["model"])
    if not match or not variant:
        return None
    data, tuned, size = match["data"], match["tuned"], int(match["size"] or 224)
    classes = (tuned or data).replace("imagenet2012", "i1k")
    path = f"augreg/{name}"
    row = _google(path, "augreg", variant, classes, size, data, name=name)
    if data == "i1k" and not tuned:  # only some have a tanh layer before the head
        return dataclasses.replace(row, architecture=None)
    return row


def on_hub(
    repository: str, *files: str, revision: str = "main", headless: bool = False
) -> tuple[Mirror, ...]:
    """Makes mirrors for files in a repository of the Hugging Face hub."""
    address = f"{HUB}/{repository}/resolve/{revision}"
    return tuple(Mirror(f"{address}/{file}", headless=headless) for file in files)


def _augreg_rows() -> Iterator[Published]:
    for variant, aug, decay, drop, rate, top1 in _table(facts.RECOMMENDED):
        upstream = _augreg_name(variant, "i21k", aug, decay, drop)
        yield _augreg_row(upstream, recommended=True)
        if rate:
            tuned = _augreg_name(variant, "i21k", aug, decay, drop, rate, "384")
            yield _augreg_row(tuned, recommended=True, accuracy=_google_top1(top1))
        # Every file was fine-tuned at both resolutions with both rates.
        yield _augreg_row(
            _augreg_name(variant, "i21k", aug, decay, drop, rate or "0.01", "224")
        )


def _original_rows() -> Iterator[Published]:
    for stem in facts.ORIGINAL:
        variant = _original_variant(stem)
        row = _google(
            f"imagenet21k/{stem}",
            "google",
            variant,
            "i21k",
            pre_logits=_width(variant),
        )
        yield dataclasses.replace(row, note="its head is reported to be unusable")
    for stem, (size, top1, _) in facts.ORIGINAL_TUNED.items():
        path = f"imagenet21k+imagenet2012/{stem}"
        row = _google(path, "google", _original_variant(stem), "i1k", size)
        yield dataclasses.replace(row, accuracy=_google_top1(top1) or row.accuracy)


def _other_google_rows() -> Iterator[Published]:
    for variant in ("B/16", "B/32"):
        stem = f"ViT-{variant.replace('/', '_')}"
        yield _google(f"sam/{stem}", "sam", variant, "i1k", data="i1k")
    for variant in ("S/32", "S/16", "B/32", "B/16"):
        path = f"gsam/ViT-{variant.replace('/', '_')}"
        row = _google(path, "gsam", variant, "i1k", data="i1k", pooling="gap")
        yield dataclasses.replace(row, note="reported to validate poorly on ImageNet")
    for data, size in itertools.product(("i21k", "i1k"), "BL"):
        path = f"{data.replace('i', 'imagenet')}/Mixer-{size}_16"
        variant = f"Mixer-{size}/16"
        yield _google(path, "mixer", variant, data, data=data, bucket="mixer_models")


def _big_vision_rows() -> Iterator[Published]:
    for epochs, top1 in ((90, 76.5), (150, 78.5), (300, 80.0)):
        yield _row(
            f"i1k-s16-{epochs}ep",
            (Mirror(f"{BUCKETS}/big_vision/vit_s16_i1k_{epochs}ep.npz"),),
            "big_vision",
            "S/16",
            "i1k",
            data="i1k",
            accuracy=Accuracy(top1, "big_vision"),
            pooling="gap",
            posemb="sincos2d",
            pre_logits=_width("S/16"),
        )
    for size, pixels, data in itertools.product(
        ("small", "base", "large"), (224, 384), ("1k", "21k")
    ):
        letter, folder = facts.SIZES[size], f"{BUCKETS}/big_vision/zoo/deit3"
        yield _row(
            f"deit3_{letter}_{pixels}_{data}",
            (Mirror(f"{folder}/bv_deit_3_{size}_{pixels}_{data}.npz"),),
            "deit3_big_vision",
            f"{letter}/16",
            "i1k",
            pixels,
            f"i{data}",
            class_token_position=False,
        )


def _timm_rows() -> Iterator[Published]:
    # The default of timm comes first for each architecture.
    for arch in facts.TIMM_AUGREG2:
        yield _timm(f"{arch}.augreg2_in21k_ft_in1k", "i1k")
    for arch, tag, *settings, top1 in _table(facts.TIMM_AUGREG):
        path = _timm_augreg_path(arch, tag, *settings)
        mirrors = (Mirror(f"{_VIT_MODELS}/{path}.npz"),)
        classes = "i21k" if tag == "in21k" else "i1k"
        name = f"{arch}.augreg_{tag}"
        yield _timm(name, classes, mirrors, accuracy=_timm_top1(top1))
    for name, top1, path in _table(facts.TIMM):
        mirrors = (Mirror(f"{_VIT_MODELS}/{path}.npz"),) if path else ()
        classes = "" if name.endswith("orig_in21k") else "i1k"
        yield _timm(name, classes, mirrors, accuracy=_timm_top1(top1))


def _deit_rows() -> Iterator[Published]:
    for arch, top1, file in _table(facts.DEIT):
        mirror = Mirror(f"{_FACEBOOK}/deit/{file}.pth", file.rpartition("-")[2])
        yield _timm(
            f"{arch}.fb_in1k",
            "i1k",
            (mirror,),
            "deit",
            accuracy=Accuracy(float(top1), "deit"),
            distillation_token="distilled" in arch,
        )
    for size, patch, pixels, *both in _table(facts.DEIT3):
        tags = (("fb_in1k", "1k"), ("fb_in22k_ft_in1k", "21k"))
        for (tag, data), top1 in zip(tags, both, strict=True):
            version = "_v1" * (size == "huge" and data == "21k")
            file = f"deit_3_{size}_{pixels}_{data}{version}.pth"
            yield _timm(
                f"deit3_{size}_patch{patch}_{pixels}.{tag}",
                "i1k",
                (Mirror(f"{_FACEBOOK}/deit/{file}"),),
                "deit",
                accuracy=Accuracy(float(top1), "deit"),
                layer_scale=True,
                class_token_position=False,
            )


def _self_supervised_rows() -> Iterator[Published]:
    for size, patch, md5, _, _ in _table(facts.MAE):
        address = f"{_FACEBOOK}/mae/pretrain/mae_pretrain_vit_{size}.pth"
        file = Mirror(address, md5=md5)
        yield _timm(f"vit_{size}_patch{patch}_224.mae", "", (file,), "mae")
    for size, registers in itertools.product(("small", "base", "large"), (0, 4)):
        middle = f"_reg{registers}" * bool(registers)
        yield _timm(
            f"vit_{size}_patch14{middle}_dinov2.lvd142m",
            "",
            family="dinov2",
            layer_scale=True,
            registers=registers,
            class_token_position=not registers,
        )


def _on_hub_row(
    name: str, family: str, variant: str, classes: str, *rest: Any, **fields: Any
) -> Published:
    """Makes the row of a model that Hugging Face converted."""
    mirrors = on_hub(name, "model.safetensors", "pytorch_model.bin")
    return _row(name, mirrors, family, variant, classes, *rest, **fields)


def _mae_rows() -> Iterator[Published]:
    """Makes the rows of Facebook's files of MAE that are not in timm."""
    patches = {size: patch for size, patch, *_ in _table(facts.MAE)}

    def row(name, folder, size, family="mae", mirrors=(), classes="", **fields):
        mirrors = mirrors or (Mirror(f"{_FACEBOOK}/mae/{folder}/{name}.pth"),)
        variant = f"{facts.SIZES[size]}/{patches[size]}"
        return _row(name, mirrors, family, variant, classes, data="i1k", **fields)

    for folder, start, end, normalized, sizes in facts.MAE_WITH_DECODER:
        for size in sizes:
            yield dataclasses.replace(
                row(f"{start}{size}{end}", folder, size),
                decoder=_mae_decoder(normalized),
            )
    for size, _, _, md5, top1 in _table(facts.MAE):
        name = f"mae_finetuned_vit_{size}"
        yield row(
            name,
            "finetune",
            size,
            mirrors=(Mirror(f"{_FACEBOOK}/mae/finetune/{name}.pth", md5=md5),),
            classes="i1k",
            accuracy=Accuracy(float(top1), "mae"),
            eval_transform=facts.TO_256,
            pooling="gap",
            class_token=True,
            norm="after_pool",
        )
    for size in patches:
        mirrors = on_hub(
            f"facebook/vit-mae-{size}", "model.safetensors", "pytorch_model.bin"
        )
        yield dataclasses.replace(
            row(f"facebook/vit-mae-{size}", "", size, "huggingface_mae", mirrors),
            decoder=_mae_decoder(normalized=False),
        )


def _mae_decoder(normalized: bool) -> DecoderFacts:
    """Describes the decoder of all published files."""
    return DecoderFacts(512, 8, 2048, 16, normalize_pixels=normalized)


def _huggingface_rows() -> Iterator[Published]:
    row = _on_hub_row
    for stem, name in facts.ORIGINAL.items():
        if name:
            variant = _original_variant(stem)
            yield row(name, "huggingface", variant, "", pre_logits=_width(variant))
    for stem, (size, _, name) in facts.ORIGINAL_TUNED.items():
        if name:
            twin = _TWINS.get(f"imagenet21k+imagenet2012/{stem}")
            accuracy = _TIMM_ROWS[twin].accuracy if twin else None
            variant = _original_variant(stem)
            yield row(
                name, "huggingface", variant, "i1k", size, "i21k", accuracy=accuracy
            )
    for arch, top1, _ in _table(facts.DEIT):
        variant, size = _timm_variant(arch)
        yield row(
            f"facebook/{arch.replace('_', '-')}",
            "huggingface_deit",
            variant,
            "i1k",
            size,
            "i1k",
            accuracy=Accuracy(float(top1), "deit"),
            eval_transform="" if size == 224 else facts.SQUASHED,
            distillation_token="distilled" in arch,
        )


def _backbone_rows() -> Iterator[Published]:
    """Yields the backbones without labels that Hugging Face converted."""
    for size, registers, classes in itertools.product(
        facts.DINOV2_SIZES, (0, 4), ("", "i1k")
    ):
        name = f"facebook/dinov2-{'with-registers-' * bool(registers)}{size}"
        yield _on_hub_row(
            name + "-imagenet1k-1-layer" * bool(classes),
            "huggingface_dinov2",
            f"{facts.SIZES[size]}/14",
            classes,
            518,
            "LVD-142M",
            pooling="cls_gap" if classes else "cls",
            layer_scale=True,
            registers=registers,
        )
    for family, size, patch, *sizes in _table(facts.SIGLIP):
        for pixels in sizes:
            yield _on_hub_row(
                f"google/{family}-{size}-patch{patch}-{pixels}",
                "huggingface_siglip",
                f"{facts.SIZES[size]}/{patch}",
                "",
                int(pixels) // int(patch) * int(patch),
                "WebLI",
                pooling="map",
            )
    for name, variant, pixels, data, arch, file in _table(facts.IJEPA):
        sizes = variant, "", int(pixels), data
        yield _on_hub_row(
            f"facebook/{name}", "huggingface_ijepa", *sizes, pooling="gap"
        )
        in_timm = f"{arch}.{file.partition('-')[0].lower()}_ijepa"
        mirrors = (Mirror(f"{_FACEBOOK}/ijepa/{file}.pth.tar"),)
        mirrors = on_hub(f"timm/{in_timm}", "model.safetensors") + mirrors
        yield _row(in_timm, mirrors, "ijepa", *sizes, pooling="gap")


def _row(
    name: str,
    mirrors: tuple[Mirror, ...],
    family: str,
    variant: str,
    classes: str,
    size: int = 224,
    data: str = "i21k",
    *,
    accuracy: Accuracy | None = None,
    eval_transform: str = "",
    **fields: Any,
) -> Published:
    """Makes a row; `fields` are those that neither variant nor family determines."""
    numerics = {
        "gelu": FAMILIES[family].gelu,
        "layernorm_epsilon": FAMILIES[family].layernorm_epsilon,
    }
    if not variant.startswith("Mixer"):
        numerics["trunk_numerics"] = FAMILIES[family].trunk_numerics
    architecture = architecture_from_variant(
        variant,
        image_size=(size, size),
        num_classes=CLASSES[classes],
        **numerics | fields,
    )
    return Published(
        name,
        mirrors,
        family,
        variant,
        architecture,
        data,
        classes,
        accuracy,
        eval_transform,
    )


def _google(
    path: str,
    family: str,
    variant: str,
    classes: str,
    size: int = 224,
    data: str = "i21k",
    *,
    name: str = "",
    bucket: str = "vit_models",
    **fields: Any,
) -> Published:
    """Makes the row of a file in one of Google's buckets, with mirrors elsewhere."""
    folder, _, stem = path.rpartition("/")
    mirrors = (Mirror(f"{BUCKETS}/{bucket}/{path}.npz"),)
    accuracy = None
    if twin := _TWINS.get(path):
        mirrors += on_hub(f"timm/{twin}", "model.safetensors")
        accuracy = _TIMM_ROWS[twin].accuracy
    copies = {
        "imagenet21k": facts.ORIGINAL.get(stem),
        "imagenet21k+imagenet2012": facts.ORIGINAL_TUNED.get(stem, (None,))[-1],
    }
    if copy := copies.get(folder):
        # The copies of ImageNet-21k models on the hub end with the tanh layer.
        headless = folder == "imagenet21k"
        files = ("model.safetensors", "pytorch_model.bin")
        mirrors += on_hub(copy, *files, headless=headless)
    return _row(
        name or path,
        mirrors,
        family,
        variant,
        classes,
        size,
        data,
        accuracy=accuracy,
        **fields,
    )


def _timm(
    name: str,
    classes: str,
    mirrors: tuple[Mirror, ...] = (),
    family: str = "timm",
    **fields: Any,
) -> Published:
    """Makes the row of a timm model on the hub, with mirrors elsewhere."""
    arch, _, tag = name.partition(".")
    variant, size = _timm_variant(arch)
    data = "i21k" if "in21k" in tag or "in22k" in tag else "i1k"
    crop = size == 224 and "in22k" not in tag
    return _row(
        name,
        on_hub(f"timm/{name}", "model.safetensors") + mirrors,
        family,
        variant,
        classes,
        size,
        {"lvd142m": "LVD-142M"}.get(tag, data),
        eval_transform=facts.CROPPED if crop else "",
        **fields,
    )


def _timm_variant(arch: str) -> tuple[str, int]:
    """Reads variant and pixels off a name such as "vit_base_patch16_224"."""
    stem, _, last = arch.rpartition("_")
    size = int(last) if last.isdecimal() else 518
    if stem in facts.TIMM_HYBRIDS:
        return facts.TIMM_HYBRIDS[stem], size
    patch = re.findall(r"patch(\d+)", arch)[0]
    return f"{facts.SIZES[arch.split('_')[1]]}/{patch}", size


def _timm_augreg_path(
    arch: str, tag: str, aug: str, decay: str, drop: str, rate: str | None
) -> str:
    variant, size = _timm_variant(arch)
    data = "i1k" if tag == "in1k" else "i21k"
    tuned = (rate, str(size)) if rate else ()
    return f"augreg/{_augreg_name(variant, data, aug, decay, drop, *tuned)}"


def _augreg_name(
    variant: str,
    data: str,
    aug: str,
    decay: str,
    drop: str,
    rate: str | None = None,
    size: str | None = None,
) -> str:
    model = re.sub(r"[+/]", "_", variant)
    upstream = f"{model}-{data}-300ep-lr_0.001-aug_{aug}-wd_{decay}-do_{drop}-sd_{drop}"
    tuned = f"--imagenet2012-steps_20k-lr_{rate}-res_{size}" if rate else ""
    return upstream + tuned


def _augreg_row(name: str, **known: Any) -> Published:
    row = augreg(name)
    assert row is not None, name
    return dataclasses.replace(row, **known)


def _original_variant(stem: str) -> str:
    return stem.removesuffix("-224").replace("ViT-", "").replace("_", "/")


def _width(variant: str) -> int:
    return parse_variant(variant)["width"]


def _google_top1(top1: str | float | None) -> Accuracy | None:
    return Accuracy(float(top1), "google") if top1 else None


def _timm_top1(top1: str | None) -> Accuracy | None:
    return Accuracy(float(top1), "timm") if top1 else None


def _table(text: str) -> list[list[Any]]:
    """Splits a table into rows of words; "-" becomes None."""
    return [
        [None if word == "-" else word for word in line.split()]
        for line in text.strip().splitlines()
    ]


_AUGREG_VARIANTS = {
    re.sub(r"[+/]", "_", variant): variant for variant, *_ in _table(facts.RECOMMENDED)
}
_TIMM_ROWS = {row.name: row for row in _timm_rows()}
# Path of Google's file → the name in timm, if timm has the same weights.
_TWINS = {
    mirror.url.removeprefix(f"{_VIT_MODELS}/").removesuffix(".npz"): row.name
    for row in _TIMM_ROWS.values()
    for mirror in row.mirrors[1:]
}
# All rows by name, in the order in which they are listed.
MODELS: dict[str, Published] = {
    row.name: row
    for row in itertools.chain(
        _augreg_rows(),
        _original_rows(),
        _other_google_rows(),
        _big_vision_rows(),
        _TIMM_ROWS.values(),
        _deit_rows(),
        _self_supervised_rows(),
        _mae_rows(),
        _huggingface_rows(),
        _backbone_rows(),
    )
}
