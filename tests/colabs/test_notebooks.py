"""The notebooks: each runs top to bottom, draws, and is committed without output."""

import ast
import re
import shutil
import sys
from pathlib import Path

import nbformat
import pytest
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

REPOSITORY = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((REPOSITORY / "colabs").glob("*.ipynb"))
# Of the 360 held-out digits; 335 when this was written, 36 by guessing.
FLOOR = 0.88


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request):
    return nbformat.read(request.param, as_version=4)


@pytest.fixture
def working_copy(tmp_path, monkeypatch):
    """Copies the files that a notebook needs, and hides the user's Jupyter settings."""
    shutil.copytree(REPOSITORY / "configs", tmp_path / "configs")
    (tmp_path / "colabs").mkdir()
    for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    # As a user runs it: on the real devices, with optimised programs.
    monkeypatch.delenv("XLA_FLAGS")
    return tmp_path


def test_there_are_notebooks():
    assert [path.name for path in NOTEBOOKS] == ["quickstart.ipynb"]


def test_runs_and_learns(notebook, working_copy):
    execute(notebook, working_copy / "colabs")

    pictures = {
        cell.id: output.data["image/png"]
        for cell in notebook.cells
        for output in cell.get("outputs", ())
        if "image/png" in output.get("data", {})
    }
    assert list(pictures) == [
        "data",
        "patches",
        "resize",
        "curves",
        "predict",
        "attention",
    ]
    # An empty figure of these sizes has about 2,000 characters.
    assert min(map(len, pictures.values())) > 10_000
    [(right, examples)] = re.findall(
        r"^(\d+) of (\d+) held-out images are right", printed(notebook), re.MULTILINE
    )
    assert examples == "360"
    assert int(right) / 360 > FLOOR
    [accuracy] = re.findall(r"after fine-tuning at 36 × 36: (.*)%", printed(notebook))
    assert float(accuracy) == pytest.approx(100 * int(right) / 360, abs=0.06)
    # Only the declared run was written, and only into the copy.
    runs = working_copy / "runs" / "notebook"
    assert sorted(path.name for path in runs.iterdir()) == ["finetune", "pretrain"]


def test_finds_the_recipes_from_the_top_folder(notebook, working_copy):
    ids = [cell.id for cell in notebook.cells]
    notebook.cells = notebook.cells[: ids.index("imports") + 1]
    notebook.cells.append(nbformat.v4.new_code_cell("print(ROOT, RUNS, sep='\\n')"))
    execute(notebook, working_copy)
    expected = [str(working_copy), str(working_copy / "runs" / "notebook")]
    assert printed(notebook).splitlines() == expected


def test_is_committed_without_results(notebook):
    for cell in code_cells(notebook):
        assert not cell.outputs, cell.id
        assert cell.execution_count is None, cell.id
        assert not cell.metadata, cell.id
    nbformat.validate(notebook)


def test_imports_only_what_a_user_has(notebook):
    allowed = {"vit_jax", "numpy", "matplotlib", *sys.stdlib_module_names}
    imported = {
        name.split(".")[0]
        for cell in code_cells(notebook)
        for node in ast.walk(ast.parse(python_of(cell.source)))
        for name in imported_names(node)
    }
    assert {"vit_jax", "numpy", "matplotlib"} <= imported <= allowed


def test_badge_and_installation_agree(notebook):
    """Checks that the repository's address is the same in both places."""
    badge, install = notebook.cells[0].source, notebook.cells[1].source
    [(address, file)] = re.findall(
        r"\(https://colab\.research\.google\.com/github/([^/]+/[^/]+)/blob/main/(.*)\)",
        badge,
    )
    assert (REPOSITORY / file) in NOTEBOOKS
    assert f'REPOSITORY = "https://github.com/{address}"' in install


def execute(notebook, folder):
    """Runs all cells in the folder, in a kernel of this interpreter."""
    # No folder of registered kernels: "python3" is then the ipykernel next to us.
    specs = KernelSpecManager(kernel_dirs=[])
    assert specs.get_kernel_spec("python3").argv[0] == sys.executable
    manager = AsyncKernelManager(kernel_name="python3", kernel_spec_manager=specs)
    resources = {"metadata": {"path": str(folder)}}
    client = NotebookClient(notebook, km=manager, timeout=280, resources=resources)
    client.execute(cleanup_kc=True)


def printed(notebook):
    return "".join(
        output.text
        for cell in code_cells(notebook)
        for output in cell.outputs
        if output.output_type == "stream" and output.name == "stdout"
    )


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def python_of(source):
    """Returns a cell's lines with IPython's commands replaced by statements."""
    return re.sub(r"^(\s*)[%!].*$", r"\1pass", source, flags=re.MULTILINE)


def imported_names(node):
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return [node.module] if node.level == 0 else ["."]
    return []
