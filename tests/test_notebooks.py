"""The notebooks run from top to bottom, find what they show, and were saved as they run."""

import re
import sys

import nbformat
import pytest
from support import ROOT

sys.path.insert(0, str(ROOT / "demo"))  # as Python does for the script

from run_notebooks import HERE, PICTURES, pictures, run

pytestmark = pytest.mark.slow

NOTEBOOKS = sorted(HERE.glob("*.ipynb"))


def printed(notebook):
    return "".join(
        output.text
        for cell in notebook.cells
        for output in cell.get("outputs", ())
        if output.output_type == "stream" and output.name == "stdout"
    )


@pytest.fixture(scope="module", params=NOTEBOOKS, ids=lambda path: path.stem)
def both(request):
    """(name, the notebook as it was saved, the same run anew)."""
    return request.param.stem, nbformat.read(request.param, 4), run(request.param)


def test_it_shows_what_was_saved(both):
    name, saved, anew = both
    assert len(pictures(anew)) == len(pictures(saved)) > 0
    shown = [
        [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
        for notebook in (saved, anew)
    ]
    assert shown[0] == shown[1]
    for picture, (notebook, number) in PICTURES.items():
        assert notebook != name or (HERE / picture).read_bytes() == pictures(saved)[number]
    for notebook in (saved, anew):
        warned = [
            output.text
            for cell in notebook.cells
            for output in cell.get("outputs", ())
            if output.output_type == "stream" and output.name == "stderr"
        ]
        assert warned == []


def test_what_was_saved_is_of_no_machine(both):
    name, saved, _ = both
    text = (HERE / f"{name}.ipynb").read_text()
    assert len(text) < 1.5e6
    outputs = [
        {key: value for key, value in output.get("data", {}).items() if not key.startswith("image/")}
        for cell in saved.cells
        for output in cell.get("outputs", ())
    ]
    assert not re.search(r"(?<![\w.])/(home|root|tmp|work|Users)/", printed(saved) + str(outputs))


def test_what_it_finds(both):
    name, _, anew = both
    text = printed(anew)
    if name == "mae_visualize":
        losses = re.findall(r"% removed: ([\d.]+), predicting the mean ([\d.]+)", text)
        assert len(losses) == 5
        assert all(float(loss) < 0.85 * float(mean) for loss, mean in losses)
    elif name == "segment_recording":
        true = re.findall(r"^(NR|LTE): ([-\d.]+) to ([-\d.]+) MHz$", text, re.MULTILINE)
        found = re.findall(r"^(NR|LTE) +([-\d.]+) MHz, +([\d.]+) MHz wide", text, re.MULTILINE)
        assert true
        for label, low, high in true:
            middle = (float(low) + float(high)) / 2
            assert any(
                label == other and abs(float(center) - middle) < float(width) / 2
                for other, center, width in found
            )
    elif name == "sensing":
        chance, here, elsewhere = (int(share) for share in re.findall(r": (\d+)%$", text, re.MULTILINE))
        assert here > 2.5 * chance
        assert elsewhere < here  # what the notebook says of it
    else:
        raise AssertionError(f"{name}: not known what it is to find")
