"""The tables of accuracy in RESULTS.md and README.md, made of the records in `benchmarks/accuracy`, and their picture."""

import json
import statistics
from pathlib import Path

import common
import label_efficiency
import real_captures
from tables import number, table

from engine_evaluate import natural
from util.files import atomic_path
from util.metrics import overall

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- accuracy: made by benchmarks/results.py -->", "<!-- end of accuracy -->"
PICTURE = "benchmarks/accuracy/label_efficiency_{size}.png"
FIGURES = {"pixel_accuracy": "pixel accuracy", "mean_accuracy": "mean class accuracy", "mean_iou": "mean IoU"}
# Of models, in the order of the tables.
KINDS = ("pretrained, all of it trained", "pretrained, frozen", "from scratch", "random, frozen", "DeepLabV3-MobileNetV3")
# "Building 6G Radio Foundation Models with Transformer Architectures", arXiv 2411.09996: pixel accuracy, encoder frozen.
PUBLISHED = {"ViT-S": (97.0, 96.8, 96.4, 97.2), "ViT-M": (97.9, 97.6, 97.5, 97.1), "ViT-L": (97.5, 97.3, 97.5, 97.7)}


def percent(values):
    """Mean, and with several seeds the least and greatest: 97.25 (96.94 .. 97.59)."""
    mean = f"{100 * statistics.mean(values):.2f}"
    return mean if len(values) == 1 else f"{mean} ({100 * min(values):.2f} .. {100 * max(values):.2f})"


def grouped(records, section):
    """{(data, kind): the records of its seeds, by seed}."""
    found = {}
    for one in sorted(records.values(), key=lambda one: one["seed"]):
        if one["section"] == section:
            found.setdefault((one["data"], one["kind"]), []).append(one)
    return found


def minutes(seeds):
    return number(sum(one["minutes"] for one in seeds))


def of_seeds(seeds, figure):
    return [one["figures"][figure] for one in seeds]


def segmentation(records):
    found = sorted(grouped(records, "segmentation").items(), key=lambda item: (item[0][0], KINDS.index(item[0][1])))
    rows = [(data, kind, str(len(seeds)), *(percent(of_seeds(seeds, figure)) for figure in FIGURES), minutes(seeds))
            for (data, kind), seeds in found]  # fmt: skip
    return table(("data", "model", "seeds", *FIGURES.values(), "minutes"), rows) if rows else ""


def by_snr(records):
    """Pixel accuracy by SNR, a table for each set of data."""
    parts = []
    found = grouped(records, "segmentation")
    for data in dict.fromkeys(data for data, _ in found):
        kinds = {kind: found[data, kind] for kind in KINDS if (data, kind) in found}
        bands = list(dict.fromkeys(band for seeds in kinds.values() for one in seeds for band in one["figures"]["by_snr"]))
        bands.sort(key=natural)
        rows = []
        for kind, seeds in kinds.items():
            cells = [[one["figures"]["by_snr"][band]["pixel_accuracy"] for one in seeds if band in one["figures"]["by_snr"]]
                     for band in bands]  # fmt: skip
            rows.append((kind, *(f"{100 * statistics.mean(cell):.1f}" if cell else "" for cell in cells)))
        parts.append(table((f"{data}: pixel accuracy", *bands), rows))
    return "\n\n".join(parts)


def masks(records):
    rows = [(way, kind, *(percent(of_seeds(seeds, figure)) for figure in FIGURES))
            for (_, name), seeds in grouped(records, "masks").items() for kind, way in [name.rsplit(", ", 1)]]  # fmt: skip
    return table(("pretrained with", "then", *FIGURES.values()), rows) if rows else ""


def shares(records):
    """{kind: {share of the labels: records of its seeds}}; all labels are runs of the first section."""
    curves = {}
    for (_, name), seeds in grouped(records, "labels").items():
        kind, share = name.rsplit(", ", 1)
        curves.setdefault(kind, {})[float(share)] = seeds
    for kind, points in curves.items():
        if whole := grouped(records, "segmentation").get(("classic, combined", kind)):
            points[1.0] = whole
    return {kind: dict(sorted(points.items())) for kind, points in curves.items()}


def labels(records):
    curves = shares(records)
    found = sorted({share for points in curves.values() for share in points})
    rows = [(kind, *(percent(of_seeds(points[share], "pixel_accuracy")) if share in points else "" for share in found))
            for kind, points in curves.items()]  # fmt: skip
    return table(("pixel accuracy with", *(f"{100 * share:g} % of the labels" for share in found)), rows) if rows else ""


def picture(curves, caption):
    """Mean and spread of each kind's pixel accuracy against the share of the labels."""
    points = {kind: {str(share): {"pixel_accuracy": {"seeds": of_seeds(seeds, "pixel_accuracy")}}
                     for share, seeds in found.items()} for kind, found in curves.items()}  # fmt: skip
    return label_efficiency.picture(points, caption)


def epochs(records):
    """The first epoch at which validation is as good as scratch is at its end, by seed."""
    found = grouped(records, "segmentation")
    rows = []
    for data in dict.fromkeys(data for data, _ in found):
        pairs = [found.get((data, kind), []) for kind in ("from scratch", "pretrained, all of it trained")]
        for scratch in pairs[0]:
            for pretrained in (one for one in pairs[1] if one["seed"] == scratch["seed"]):
                curves = [one["figures"]["validation"] for one in (scratch, pretrained)]
                goal = list(curves[0].values())[-1]
                first = [next((str(int(epoch) + 1) for epoch, value in curve.items() if value >= goal), "never")
                         for curve in curves]  # fmt: skip
                rows.append((data, str(scratch["seed"]), f"{100 * goal:.2f}", *first))
    header = ("data", "seed", "from scratch at its end, validation", "reached from scratch in epoch", "pretrained in epoch")
    return table(header, rows) if rows else ""


def sensing(records):
    rows = [(data, kind, str(len(seeds)), percent([one["figures"][overall(one["figures"])] for one in seeds]),
             percent(of_seeds(seeds, "mean_accuracy")), minutes(seeds))
            for (data, kind), seeds in grouped(records, "sensing").items()]  # fmt: skip
    return table(("data", "encoder", "seeds", "accuracy", "mean class accuracy", "minutes"), rows) if rows else ""


def recordings(records):
    """What captures among what is pretrained on bring to scenes, and to captures that were held back."""
    judged = {kind: seeds for (_, kind), seeds in grouped(records, "captures").items()}
    figures = ("pixel_accuracy", "mean_iou")
    rows = []
    for (_, kind), seeds in grouped(records, "recordings").items():
        found = [one["figures"] for one in judged.get(kind, ())]
        right = ", ".join(f"{one['totals']['captures'][0]} of {one['totals']['captures'][1]}" for one in found)
        rows.append((kind, str(len(seeds)), *(percent(of_seeds(seeds, figure)) for figure in figures),
                     percent([one["cells"] for one in found]) if found else "", right))  # fmt: skip
    header = ("pretrained on", "seeds", *(f"scenes: {FIGURES[figure]}" for figure in figures), "captures: cells",
              "captures that are right, by seed")  # fmt: skip
    return table(header, rows) if rows else ""


def captures():
    """Each real capture, of `benchmarks/real_captures.py`'s record."""
    found = [record for name, record in common.read_results(ROOT / "benchmarks" / "results") if name == "real_captures"]
    if not found:
        return ""
    rows = real_captures.rows_of(found[-1]["captures"])
    counts = "; ".join(f"{name.replace('_', ' ')}: {right} of {all_}" for name, (right, all_) in found[-1]["totals"].items())
    return f"{table(real_captures.HEADER, rows)}\n\nRight: {counts}. `{found[-1]['command']}`"


def published(_):
    return table(("published, encoder frozen", "70 %", "75 %", "80 %", "from scratch"),
                 [(name, *map(str, values)) for name, values in PUBLISHED.items()])  # fmt: skip


def commands(records):
    """Every run: its command, its time, when and on what."""
    about = ("device", "date", "commit")
    rows = [(f"`{one['command']}`", str(one["minutes"]), *(one[name] for name in about)) for one in records.values()]
    return table(("command", "minutes", "on", "date", "commit"), rows) if rows else ""


# What RESULTS.md has of each size of model, after the real captures; README.md has those of few labels.
SECTIONS = {
    "Segmentation": (segmentation, published), "By SNR": (by_snr,), "How it is masked": (masks,), "Few labels": (labels,),
    "Epochs to what scratch reaches": (epochs,), "Sensing": (sensing,), "Captures to pretrain on": (recordings,),
    "Commands": (commands,),
}  # fmt: skip


def text(document, by_size):
    """The tables of a document. `by_size`: {size of the model: its records}."""
    if document == "README.md":
        return "\n\n".join(filter(None, (labels(records) for records in by_size.values())))
    parts = ["## Real captures", found] if (found := captures()) else []
    for size, records in by_size.items():
        for title, makers in SECTIONS.items():
            tables = list(filter(None, (make(records) for make in makers)))
            if title == "Few labels" and tables:
                tables.append(f"![pixel accuracy against the share of the labels]({PICTURE.format(size=size)})")
            parts += [f"## {title}, ViT-{size}", *tables] if tables else []
    return "\n\n".join(parts)


def made(document, by_size):
    """A document with its tables as the records have them."""
    return common.with_tables(ROOT / document, BEGIN, END, text(document, by_size))


def read(folder):
    return {path.stem: json.loads(path.read_text()) for path in sorted(Path(folder).glob("*.json"))}


def update(folder):
    """Put the records of a folder into the documents, and draw the curves of few labels."""
    by_size = read(folder)
    for document in ("README.md", "RESULTS.md"):
        with atomic_path(ROOT / document) as temporary:
            temporary.write_text(made(document, by_size))
    for size, records in by_size.items():
        if curves := shares(records):
            with atomic_path(ROOT / PICTURE.format(size=size)) as temporary:
                picture(curves, f"ViT-{size}, `classic`, combined frames").savefig(temporary, format="png", dpi=110)
