"""Packaging. The versions that the tests ran with are pinned in constraints.txt."""

import pathlib
import re

from setuptools import find_packages, setup

INIT = pathlib.Path("vit_jax/__init__.py").read_text(encoding="utf-8")

TEST = [
    "beartype>=0.22.1",
    "pyarrow>=18.1.0",
    "pytest>=9.0",
    "pytest-timeout>=2.4",
    "pytest-xdist>=3.8",
    "ipykernel>=7.0",
    "nbclient>=0.10.4",
    "tifffile>=2025.10.16",
]
LINT = ["import-linter>=2.10", "pyright[nodejs]>=1.1.400", "ruff>=0.14"]

setup(
    name="vit_jax",
    version=re.findall(r'^__version__ = "(.+)"', INIT, re.MULTILINE)[0],
    description="Vision Transformers in JAX and Flax: pretrain, fine-tune, predict.",
    long_description=pathlib.Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    # The recipes are in the wheel, so that --config=b16 finds them from anywhere.
    packages=[*find_packages(include=["vit_jax", "vit_jax.*"]), "vit_jax.configs"],
    package_dir={"vit_jax.configs": "configs"},
    package_data={"vit_jax": ["py.typed"], "vit_jax.pages": ["templates/*"]},
    python_requires=">=3.11",
    classifiers=[
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
    ],
    install_requires=[
        "absl-py>=2.3",
        'array-record>=0.8.1; sys_platform != "win32"',
        "etils[epath]>=1.13",
        "filelock>=3.20",
        "flax>=0.12.8",
        "grain>=0.2.18",
        # tensorflow-datasets imports it without declaring it.
        "importlib_resources>=6.5",
        "jax>=0.10.2",
        "jaxtyping>=0.3.5",
        # Pages that open without a network; it escapes every text.
        "jinja2>=3.1.6",
        # Plots and colour maps.
        "matplotlib>=3.10",
        "ml-collections>=1.1.0",
        "ml_dtypes>=0.5",
        "numpy>=2.0",
        "opencv-python-headless>=4.12.0.88",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12.8",
        "packaging>=25.0",
        "pillow>=12.0",
        "psutil>=7.0",
        "requests>=2.32.2",
        "rich>=14.3",
        "safetensors>=0.6.1",
        # Carries the embedded digits.
        "scikit-learn>=1.7",
        # Connected regions of maps, eigenvectors.
        "scipy>=1.14",
        # libjpeg-turbo, without a copy through another image type.
        "simplejpeg>=1.8",
        "tensorboardX>=2.6.5",
        "tensorflow-datasets>=4.9.10",
        "urllib3>=2.2",
    ],
    extras_require={
        "tpu": ["jax[tpu]>=0.10.2"],
        "cuda12": ["jax[cuda12]>=0.10.2"],
        "cuda13": ["jax[cuda13]>=0.10.2"],
        "wandb": ["wandb>=0.22"],
        # Work directories in buckets.
        "gcs": ["gcsfs>=2026.9"],
        "s3": ["s3fs>=2026.9"],
        # HEIF: what iPhones write.
        "heif": ["pillow-heif>=1.1"],
        # TIFFs of many bands; imagecodecs is for compressed ones.
        "tiff": ["tifffile>=2025.10.16", "imagecodecs>=2025.11.11"],
        # What benchmarks/input.py compares with.
        "peers": ["tensorflow-cpu>=2.20", "timm>=1.0", "torch>=2.9", "torchvision"],
        # TensorFlow, once, to prepare a set of tensorflow-datasets.
        "prepare": ["tensorflow>=2.20"],
        # Compiles for TPUs that are not there.
        "plan": ["libtpu>=0.0.52"],
        # Tables of images as Parquet files.
        "parquet": ["pyarrow>=18.1.0"],
        "notebook": ["ipykernel>=7.0"],
        "test": TEST,
        "dev": TEST + LINT,
    },
)
