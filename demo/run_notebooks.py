"""Run the notebooks of this folder, save what they show in them, and take the pictures of README.md from
there.

pip install -r requirements-dev.txt
python demo/run_notebooks.py
"""

import base64
from pathlib import Path

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).resolve().parent
TIMEOUT_S = 300  # of a cell
# Picture of README.md: notebook, which of its pictures.
PICTURES = {"reconstruction.jpg": ("mae_visualize", 0), "labelled.png": ("segment_recording", 0)}


def run(path):
    """A notebook with what it shows now; nothing in it says when or where that was."""
    notebook = nbformat.read(path, 4)
    NotebookClient(notebook, timeout=TIMEOUT_S, resources={"metadata": {"path": str(HERE)}}).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
    notebook.metadata.language_info = {"name": "python"}
    return notebook


def pictures(notebook):
    """The files of the pictures that a notebook shows, in their order."""
    shown = [output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", ())]
    return [
        base64.b64decode(data[kind]) for data in shown for kind in ("image/png", "image/jpeg") if kind in data
    ]


if __name__ == "__main__":
    notebooks = {path.stem: run(path) for path in sorted(HERE.glob("*.ipynb"))}  # all, before any is written
    for name, notebook in notebooks.items():
        nbformat.write(notebook, HERE / f"{name}.ipynb")
    for name, (notebook, number) in PICTURES.items():
        (HERE / name).write_bytes(pictures(notebooks[notebook])[number])
