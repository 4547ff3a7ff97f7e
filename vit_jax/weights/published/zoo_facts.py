"""Facts about published weights as plain text tables, from which `zoo` makes rows."""

# Evaluation that differs from the family's: timm's, whose shorter side is 224 / 0.9,
# facebookresearch/mae's, and that of Hugging Face's larger DeiT.
CROPPED = (
    "resize_small(248, 'bicubic_antialias', 'down')|central_crop(rounding='nearest')"
)
TO_256 = (
    "resize_small(256, 'bicubic_antialias', 'down')|central_crop(rounding='nearest')"
)
SQUASHED = "resize(interpolation='bicubic_antialias')"

# The recommended AugReg files: variant, augmentation, weight decay, dropout and
# stochastic depth; then learning rate and top-1 of fine-tuning at 384 pixels.
RECOMMENDED = """
L/16      strong1  0.1   0.0  0.01  85.59
B/16      medium1  0.1   0.0  0.03  85.49
S/16      light1   0.03  0.0  0.03  83.73
Ti/16     none     0.03  0.0  0.03  78.22
B/32      light1   0.1   0.0  0.01  83.59
S/32      none     0.1   0.0  0.01  79.58
R50+L/32  medium1  0.1   0.1  0.01  85.99
R26+S/32  light1   0.1   0.0  0.01  83.85
R+Ti/16   none     0.03  0.0  0.03  75.40
B/8       medium2  0.1   0.0  -     -
"""
# AugReg in timm: name, tag (the default one first), then the columns above. The files
# are not always the recommended ones.
TIMM_AUGREG = """
vit_tiny_patch16_224    in21k_ft_in1k  none     0.03  0.0  0.03  75.45
vit_tiny_patch16_224    in21k          none     0.03  0.0  -     -
vit_tiny_patch16_384    in21k_ft_in1k  none     0.03  0.0  0.03  78.44
vit_small_patch32_224   in21k_ft_in1k  light1   0.03  0.0  0.03  76.01
vit_small_patch32_224   in21k          light1   0.03  0.0  -     -
vit_small_patch32_384   in21k_ft_in1k  light1   0.03  0.0  0.03  80.48
vit_small_patch16_224   in21k_ft_in1k  light1   0.03  0.0  0.03  81.40
vit_small_patch16_224   in1k           medium2  0.1   0.0  0.01  78.84
vit_small_patch16_224   in21k          light1   0.03  0.0  -     -
vit_small_patch16_384   in21k_ft_in1k  light1   0.03  0.0  0.03  83.81
vit_small_patch16_384   in1k           medium2  0.1   0.0  0.01  81.13
vit_base_patch32_224    in21k_ft_in1k  medium1  0.03  0.0  0.03  80.73
vit_base_patch32_224    in1k           medium2  0.1   0.1  0.01  74.91
vit_base_patch32_224    in21k          medium1  0.03  0.0  -     -
vit_base_patch32_384    in21k_ft_in1k  light1   0.1   0.0  0.03  83.36
vit_base_patch32_384    in1k           medium2  0.1   0.1  0.01  78.75
vit_base_patch16_224    in21k_ft_in1k  medium1  0.1   0.0  0.01  84.53
vit_base_patch16_224    in1k           strong2  0.1   0.1  0.01  79.15
vit_base_patch16_224    in21k          medium1  0.1   0.0  -     -
vit_base_patch16_384    in21k_ft_in1k  medium1  0.1   0.0  0.01  86.01
vit_base_patch16_384    in1k           strong2  0.1   0.1  0.01  81.10
vit_base_patch8_224     in21k_ft_in1k  medium1  0.1   0.0  0.01  85.84
vit_base_patch8_224     in21k          medium1  0.1   0.0  -     -
vit_large_patch16_224   in21k_ft_in1k  medium1  0.1   0.1  0.01  85.86
vit_large_patch16_224   in21k          medium1  0.1   0.1  -     -
vit_large_patch16_384   in21k_ft_in1k  medium1  0.1   0.1  0.01  87.10
vit_tiny_r_s16_p8_224   in21k_ft_in1k  none     0.03  0.0  0.03  71.80
vit_tiny_r_s16_p8_224   in21k          none     0.03  0.0  -     -
vit_tiny_r_s16_p8_384   in21k_ft_in1k  none     0.03  0.0  0.03  75.96
vit_small_r26_s32_224   in21k_ft_in1k  light0   0.03  0.1  0.03  81.86
vit_small_r26_s32_224   in21k          medium2  0.03  0.0  -     -
vit_small_r26_s32_384   in21k_ft_in1k  medium2  0.03  0.0  0.03  84.07
vit_large_r50_s32_224   in21k_ft_in1k  medium1  0.1   0.1  0.01  84.43
vit_large_r50_s32_224   in21k          medium2  0.1   0.0  -     -
vit_large_r50_s32_384   in21k_ft_in1k  medium2  0.1   0.0  0.01  86.19
"""
# AugReg, fine-tuned again by timm: the default, with the tag augreg2_in21k_ft_in1k.
TIMM_AUGREG2 = ("vit_base_patch8_224", "vit_base_patch16_224")
# Other models in timm: name, top-1, and the Google file from which they were made if
# that holds the same parameters.
TIMM = """
vit_base_patch16_224.orig_in21k_ft_in1k   81.78  imagenet21k+imagenet2012/ViT-B_16-224
vit_base_patch16_384.orig_in21k_ft_in1k   84.21  imagenet21k+imagenet2012/ViT-B_16
vit_large_patch32_384.orig_in21k_ft_in1k  81.51  imagenet21k+imagenet2012/ViT-L_32
vit_base_r50_s16_384.orig_in21k_ft_in1k   84.99  imagenet21k+imagenet2012/R50+ViT-B_16
vit_base_patch16_224.sam_in1k             80.25  sam/ViT-B_16
vit_base_patch32_224.sam_in1k             73.70  sam/ViT-B_32
vit_base_patch16_224.orig_in21k             -    -
vit_base_patch32_224.orig_in21k             -    -
vit_large_patch16_224.orig_in21k            -    -
vit_large_patch32_224.orig_in21k            -    -
vit_huge_patch14_224.orig_in21k             -    -
vit_base_r50_s16_224.orig_in21k             -    -
"""
# DeiT: timm's name (the tag is always fb_in1k), top-1, Facebook's file, whose name ends
# with the beginning of its SHA-256. The hub has copies at facebook/deit-….
DEIT = """
deit_tiny_patch16_224             72.2  deit_tiny_patch16_224-a1311bcf
deit_small_patch16_224            79.8  deit_small_patch16_224-cd65a155
deit_base_patch16_224             81.8  deit_base_patch16_224-b5f2ef4d
deit_base_patch16_384             82.9  deit_base_patch16_384-8de9b5d1
deit_tiny_distilled_patch16_224   74.5  deit_tiny_distilled_patch16_224-b40b3cf7
deit_small_distilled_patch16_224  81.2  deit_small_distilled_patch16_224-649709d9
deit_base_distilled_patch16_224   83.4  deit_base_distilled_patch16_224-df68dfff
deit_base_distilled_patch16_384   84.5  deit_base_distilled_patch16_384-d0272ac0
"""
# DeiT-III: size, patch, pixels, top-1 with ImageNet-1k only and after ImageNet-21k.
DEIT3 = """
small   16  224  81.4  83.1
small   16  384  83.4  84.8
medium  16  224  83.0  84.5
base    16  224  83.8  85.7
base    16  384  85.0  86.7
large   16  224  84.9  87.0
large   16  384  85.8  87.7
huge    14  224  85.2  87.2
"""
# MAE: size, patch, beginnings of the MD5 of Facebook's files after pretraining (the
# encoder alone) and after fine-tuning, top-1 of the latter.
MAE = """
base   16  8cad7c  1b25e9  83.664
large  16  b8b06e  51f550  85.952
huge   14  9bdbb0  2541f2  86.928
"""
# Facebook's files with a decoder, whose targets were pixels that are normalised within
# each patch, or plain ones: folder, the name's beginning and end, normalised, sizes.
# These are other trainings. The hub's copies at facebook/vit-mae-… are the plain ones.
MAE_WITH_DECODER = (
    ("pretrain", "mae_pretrain_vit_", "_full", True, ("base", "large", "huge")),
    ("visualize", "mae_visualize_vit_", "", False, ("base", "large", "huge")),
    ("visualize", "mae_visualize_vit_", "_ganloss", False, ("large",)),
)
# The original ViT files, ImageNet-21k → the copy on the hub, which has the tanh layer.
ORIGINAL = {
    "ViT-B_16": "google/vit-base-patch16-224-in21k",
    "ViT-B_32": "google/vit-base-patch32-224-in21k",
    "ViT-L_16": "google/vit-large-patch16-224-in21k",
    "ViT-L_32": "google/vit-large-patch32-224-in21k",
    "ViT-H_14": "google/vit-huge-patch14-224-in21k",
    "R50+ViT-B_16": None,
}
# The original files fine-tuned on ImageNet-1k → pixels, top-1, the copy on the hub.
ORIGINAL_TUNED = {
    "ViT-B_16-224": (224, 81.2, "google/vit-base-patch16-224"),
    "ViT-B_16": (384, None, "google/vit-base-patch16-384"),
    "ViT-B_32": (384, None, "google/vit-base-patch32-384"),
    "ViT-L_16-224": (224, 82.7, "google/vit-large-patch16-224"),
    "ViT-L_16": (384, None, "google/vit-large-patch16-384"),
    "ViT-L_32": (384, None, "google/vit-large-patch32-384"),
    "R50+ViT-B_16": (384, None, None),
}
# DINOv2 on the hub: with registers or not, and then a linear classifier or none.
DINOV2_SIZES = ("small", "base", "large")
# SigLIP and SigLIP 2 of fixed resolution on the hub: size, patch, pixels.
SIGLIP = """
siglip   base    16  224 256 384 512
siglip   large   16  256 384
siglip   so400m  14  224 384
siglip2  base    16  224 256 384 512
siglip2  base    32  256
siglip2  large   16  256 384 512
siglip2  so400m  14  224 384
siglip2  so400m  16  256 384 512
"""
# I-JEPA: Hugging Face's name, variant, pixels, data, timm's name, Facebook's file.
IJEPA = """
ijepa_vith14_1k   H/14  224  i1k   vit_huge_patch14_gap_224   IN1K-vit.h.14-300e
ijepa_vith14_22k  H/14  224  i21k  vit_huge_patch14_gap_224   IN22K-vit.h.14-900e
ijepa_vith16_1k   H/16  448  i1k   vit_huge_patch16_gap_448   IN1K-vit.h.16-448px-300e
ijepa_vitg16_22k  g/16  224  i21k  vit_giant_patch16_gap_224  IN22K-vit.g.16-600e
"""
SIZES = {
    "tiny": "Ti",
    "small": "S",
    "medium": "M",
    "base": "B",
    "large": "L",
    "huge": "H",
    "so400m": "So400m",
}
TIMM_HYBRIDS = {
    "vit_tiny_r_s16_p8": "R+Ti/16",
    "vit_small_r26_s32": "R26+S/32",
    "vit_base_r50_s16": "R50+B/16",
    "vit_large_r50_s32": "R50+L/32",
}
