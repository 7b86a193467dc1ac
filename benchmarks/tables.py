"""The tables in README.md, docs/SPEED.md and RESULTS.md, made from the records of the benchmarks.

Speed: `benchmarks/results`, written by bench.py. Accuracy: `benchmarks/accuracy`, written by results.py.
"""

import json
import statistics
from pathlib import Path

import common
import real_captures
from bench_pretrain import HABIT, OURS, THEIRS
from common import ROOT, cell, number, table

from util.metrics import natural, overall

SPEED_MARKS = "<!-- speed: made by benchmarks/bench.py -->", "<!-- end of speed -->"
ACCURACY_MARKS = "<!-- accuracy: made by benchmarks/results.py -->", "<!-- end of accuracy -->"

# Speed

SOURCES = {
    "TIFF a sample": "the field's habit: open a float TIFF of the STFT, log, bicubic resize",
    "spectrogram set": "spectrogram set",
    "SigMF ci16, with STFT": "SigMF ci16, STFT included",
    "npy complex64, with STFT": "`.npy` complex64, STFT included",
    "TIFF images": "TIFF images, by `data/images.py`",
    "PNG images, 256 x 256": "PNG images of 256 x 256",
}


def of_benchmark(records, name):
    """(device, record) of a benchmark on each device."""
    return [(record["device"], record) for known, record in records if known == name]


def data(records, full):
    found = of_benchmark(records, "bench_data")
    rows = []
    for source, text in SOURCES.items():
        cells = []
        for _, record in found:
            rate = record["sources"][source]
            cells += [cell(rate["windows_per_s"], full), f"{rate['times_tiff_a_sample']:.3g}"]
        rows.append((text, *cells))
    header = "windows of 16 ms at 61.44 Msps to images of 224 x 224, one core"
    devices = "".join(f" | {device}: windows/s | times TIFF" for device, _ in found)
    return table(header + devices, rows if found else [])


def steps(records, full):
    """A row for each model, batch and precision, with the peers beside it."""
    rows = []
    for device, record in of_benchmark(records, "bench_pretrain"):
        models = {}
        for one in record["candidates"]:
            models.setdefault((one["model"], one["batch_size"]), []).append(one)
        for (model, batch), candidates in models.items():
            habit = next((one for one in candidates if one["name"] == HABIT), {})
            for amp in dict.fromkeys(one["amp"] for one in candidates if one["name"] == OURS):
                named = {(one["name"], one["compiled"]): one for one in candidates if one["amp"] == amp}
                best = named.get((OURS, "compiled")) or named[OURS, ""]
                peers = named[THEIRS, ""], named.get((THEIRS, "compiled"), {}), habit
                rates = [one.get("images_per_s") for one in peers]
                ratio = best["images_per_s"]["median"] / rates[0]["median"]
                precision = "fp32" if amp == "off" else amp
                ours = cell(best["images_per_s"], full), f"{best['mfu']:.0%}" if "mfu" in best else ""
                theirs = [cell(rate, full) for rate in rates]
                rows.append((f"`{model}`, {batch}", device, precision, *ours, *theirs, f"{ratio:.2f}"))
    ours = "pretraining step: model, batch | on | precision | radio-mae, images/s | MFU"
    theirs = "transformers' `ViTMAEForPreTraining` | compiled | the field's habit | radio-mae / transformers"
    return table(f"{ours} | {theirs}", rows)


def fed(records, full):
    rows = []
    for device, record in of_benchmark(records, "bench_end_to_end"):
        for source, one in record["fed_from"].items():
            what = f"`{record['model']}`, {record['batch_size']}, {source}"
            wait = f"{one['data_wait']['median']:.1%}" if "data_wait" in one else ""
            rate, share = cell(one["images_per_s"], full), f"{one.get('of_the_step', 1):.0%}"
            rows.append((what, device, rate, share, wait))
    header = "`main_pretrain.py`: model, batch, fed from | on | images/s | of the step alone | waits for data"
    return table(header, rows)


def others(records, full):
    rows = []
    for device, record in of_benchmark(records, "bench_segment"):
        for one in record["devices"].values():
            for rate, found in one.get("rates", {}).items():
                what = f"labelling {float(rate) / 1e6:g} Msps ci16 with the shipped weights: s of signal a second"
                rows.append((what, device, cell(found["real_time_factor"], full)))
    for device, record in of_benchmark(records, "bench_synthesize"):
        for preset, one in record["presets"].items():
            name, _, on = preset.partition(", ")
            what = f"`{name}` scenes to spectrograms, {'one core' if on == 'cpu' else on}: s a scene"
            rows.append((what, device, cell(one["seconds_a_scene"], full)))
    return table(" | on | median", rows)


# The tables of each document, and whether cells are full: with minimum and maximum.
SPEED = {
    "README.md": ((steps,), False),
    "docs/SPEED.md": ((data, steps, fed, others), True),
}


def speed(document, records):
    """The tables of a document."""
    makers, full = SPEED[document]
    return "\n\n".join(filter(None, (make(records, full) for make in makers)))


def update_speed(folder):
    records = common.read_records(folder)
    for document in SPEED:
        common.write_tables(ROOT / document, SPEED_MARKS, speed(document, records))
        print(f"{document}: tables of {len({record['device'] for _, record in records})} devices")


# Accuracy

FIGURES = {"pixel_accuracy": "pixel accuracy", "mean_accuracy": "mean class accuracy", "mean_iou": "mean IoU"}
TITLES = " | ".join(FIGURES.values())
# Of models, in the order of the tables.
KINDS = ALL, FROZEN, SCRATCH, RANDOM, BASELINE = (
    "pretrained, all of it trained",
    "pretrained, frozen",
    "from scratch",
    "random, frozen",
    "DeepLabV3-MobileNetV3",
)
# "Building 6G Radio Foundation Models with Transformer Architectures", arXiv 2411.09996: pixel accuracy.
PUBLISHED = """
| published, encoder frozen | 70 % | 75 % | 80 % | from scratch |
|---|---|---|---|---|
| ViT-S | 97.0 | 96.8 | 96.4 | 97.2 |
| ViT-M | 97.9 | 97.6 | 97.5 | 97.1 |
| ViT-L | 97.5 | 97.3 | 97.5 | 97.7 |
""".strip()


def percent(values):
    """Mean, and with several seeds the least and greatest: 97.25 (96.94 .. 97.59)."""
    values = [100 * value for value in values]
    mean = f"{statistics.mean(values):.2f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.2f} .. {max(values):.2f})"


def grouped(records, section):
    """{(data, kind): the records of its seeds, by seed}."""
    found = {}
    for one in sorted(records.values(), key=lambda one: one["seed"]):
        if one["section"] == section:
            found.setdefault((one["data"], one["kind"]), []).append(one)
    return found


def of_seeds(seeds, figures=FIGURES):
    """A cell for each figure: its name, or a function that gives the name for the figures of a run."""
    found = [one["figures"] for one in seeds]
    return [percent([one[name(one) if callable(name) else name] for one in found]) for name in figures]


def row(names, seeds, figures=FIGURES):
    """Data, kind, number of seeds, the figures, and the minutes of all seeds together."""
    minutes = number(sum(one["minutes"] for one in seeds))
    return *names, str(len(seeds)), *of_seeds(seeds, figures), minutes


def segmentation(records):
    found = grouped(records, "segmentation")
    order = sorted(found, key=lambda names: (names[0], KINDS.index(names[1])))
    rows = [row(names, found[names]) for names in order]
    return table(f"data | model | seeds | {TITLES} | minutes", rows)


def by_snr(records):
    """Pixel accuracy by SNR, a table for each set of data."""
    found, parts = grouped(records, "segmentation"), []
    for data in dict.fromkeys(data for data, _ in found):
        kinds = {kind: found[data, kind] for kind in KINDS if (data, kind) in found}
        kinds = {kind: [one["figures"]["by_snr"] for one in seeds] for kind, seeds in kinds.items()}
        bands = sorted({band for seeds in kinds.values() for one in seeds for band in one}, key=natural)
        rows = []
        for kind, seeds in kinds.items():
            cells = [[one[band]["pixel_accuracy"] for one in seeds if band in one] for band in bands]
            means = [f"{100 * statistics.mean(values):.1f}" if values else "" for values in cells]
            rows.append((kind, *means))
        parts.append(table(" | ".join([f"{data}: pixel accuracy", *bands]), rows))
    return "\n\n".join(parts)


def masks(records):
    found = {tuple(name.rsplit(", ", 1)): seeds for (_, name), seeds in grouped(records, "masks").items()}
    rows = [(way, kind, *of_seeds(seeds)) for (kind, way), seeds in found.items()]
    return table(f"pretrained with | then | {TITLES}", rows)


def labels(records):
    """Pixel accuracy by share of the labels; all labels are in the section of segmentation."""
    cells = {}
    for (_, name), seeds in grouped(records, "labels").items():
        kind, share = name.rsplit(", ", 1)
        cells.setdefault(kind, {})[float(share)] = of_seeds(seeds, ["pixel_accuracy"])[0]
    for kind, found in cells.items():
        if whole := grouped(records, "segmentation").get(("classic, combined", kind)):
            found[1.0] = of_seeds(whole, ["pixel_accuracy"])[0]
    shares = sorted({share for found in cells.values() for share in found})
    rows = [(kind, *(found.get(share, "") for share in shares)) for kind, found in cells.items()]
    return table(
        " | ".join(["pixel accuracy with", *(f"{100 * one:g} % of the labels" for one in shares)]), rows
    )


def epochs(records):
    """The first epoch at which validation is as good as scratch is at its end, by seed."""
    found, rows = grouped(records, "segmentation"), []
    for (data, kind), seeds in found.items():
        pretrained = {one["seed"]: one for one in found.get((data, ALL), [])}
        for one in seeds if kind == SCRATCH else ():
            if other := pretrained.get(one["seed"]):
                curves = [each["figures"]["validation"] for each in (one, other)]
                goal = list(curves[0].values())[-1]
                reached = [[int(epoch) + 1 for epoch in curve if curve[epoch] >= goal] for curve in curves]
                first = [str(epochs[0]) if epochs else "never" for epochs in reached]
                rows.append((data, str(one["seed"]), f"{100 * goal:.2f}", *first))
    reached = "reached from scratch in epoch | pretrained in epoch"
    return table(f"data | seed | from scratch at its end, validation | {reached}", rows)


def sensing(records):
    found = grouped(records, "sensing").items()
    rows = [row(names, seeds, (overall, "mean_accuracy")) for names, seeds in found]
    return table("data | encoder | seeds | accuracy | mean class accuracy | minutes", rows)


def recordings(records):
    """What captures in the pretraining data bring to scenes, and to captures that were held back."""
    judged = {kind: seeds for (_, kind), seeds in grouped(records, "captures").items()}
    figures, rows = ("pixel_accuracy", "mean_iou"), []
    for (_, kind), seeds in grouped(records, "recordings").items():
        found = judged.get(kind, [])
        counts = [one["figures"]["totals"]["captures"] for one in found]
        cells = of_seeds(found, ["cells"]) if found else [""]
        right = ", ".join(f"{right} of {count}" for right, count in counts)
        rows.append((kind, str(len(seeds)), *of_seeds(seeds, figures), *cells, right))
    scenes = " | ".join(f"scenes: {FIGURES[figure]}" for figure in figures)
    return table(
        f"pretrained on | seeds | {scenes} | captures: cells | captures that are right, by seed", rows
    )


def captures():
    """Each real capture, from the newest record of `real_captures.py`."""
    found = of_benchmark(common.read_records(ROOT / "benchmarks" / "results"), "real_captures")
    if not found:
        return ""
    record = found[-1][1]
    rows = table(" | ".join(real_captures.HEADER), real_captures.rows_of(record["captures"]))
    return f"{rows}\n\nRight: {real_captures.counts(record['totals'])}. `{record['command']}`"


# What RESULTS.md has of each size of model, after the real captures; README.md has that of few labels.
SECTIONS = {
    "Segmentation": (segmentation, lambda _: PUBLISHED),
    "By SNR": (by_snr,),
    "How it is masked": (masks,),
    "Few labels": (labels,),
    "Epochs to what scratch reaches": (epochs,),
    "Sensing": (sensing,),
    "Captures to pretrain on": (recordings,),
}
ACCURACY = ("README.md", "RESULTS.md")


def accuracy(document, by_size):
    """The tables of a document. `by_size`: {size of the model: its records}."""
    if document == "README.md":
        return "\n\n".join(filter(None, (labels(records) for records in by_size.values())))
    parts = ["## Real captures", found] if (found := captures()) else []
    for size, records in by_size.items():
        for title, makers in SECTIONS.items():
            made = list(filter(None, (make(records) for make in makers)))
            parts += [f"## {title}, ViT-{size}", *made] if made else []
    return "\n\n".join(parts)


def read_accuracy(folder):
    return {path.stem: json.loads(path.read_text()) for path in sorted(Path(folder).glob("*.json"))}


def update_accuracy(folder):
    """Put the records of a folder into the documents."""
    by_size = read_accuracy(folder)
    for document in ACCURACY:
        common.write_tables(ROOT / document, ACCURACY_MARKS, accuracy(document, by_size))
