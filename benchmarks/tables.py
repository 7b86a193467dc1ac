"""The tables of speed in README.md and docs/SPEED.md, made of the records in `benchmarks/results`."""

from pathlib import Path

import common

from util.files import atomic_path

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- speed: made by benchmarks/bench.py -->", "<!-- end of speed -->"
HABIT = "TIFF a sample"
SOURCES = {
    HABIT: "the field's habit: open a float TIFF of the STFT, log, bicubic resize",
    "spectrogram set": "spectrogram set",
    "SigMF ci16, with STFT": "SigMF ci16, STFT included",
    "npy complex64, with STFT": "`.npy` complex64, STFT included",
    "TIFF images": "TIFF images, by `data/images.py`",
    "PNG images, 256 x 256": "PNG images of 256 x 256",
}
OURS, THEIRS, USUAL = "radio-mae", "transformers", "the field's habit"


def number(value):
    """Three digits, or all before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def table(header, rows):
    lines = ["| " + " | ".join(row) + " |" for row in (header, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(header), *lines[1:]])


def cell(found, spread):
    """A median, with `spread` the least and greatest too."""
    if not found:
        return ""
    text = number(found["median"])
    return f"{text} ({number(found['min'])} .. {number(found['max'])})" if spread else text


def by_device(records, name):
    """(device, record) of a benchmark, the same benchmark of several devices beside each other."""
    return [(record["device"], record) for known, record in records if known == name]


def data(records, spread):
    found = by_device(records, "bench_data")
    rows = []
    for source, said in SOURCES.items():
        cells = []
        for _, record in found:
            one = record["sources"].get(source)
            cells += [cell(one["windows_per_s"], spread), f"{one['times_tiff_a_sample']:.3g}"] if one else ["", ""]
        rows.append((said, *cells))
    if not spread:
        rows = rows[:4]
    header = ["windows of 16 ms at 61.44 Msps to images of 224 x 224, one core"]
    for device, _ in found:
        header += [f"{device}: windows/s", "times TIFF"]
    return table(header, rows) if found else ""


def steps(records, spread):
    rows = []
    for device, record in by_device(records, "bench_pretrain"):
        entries = record["candidates"]
        for model, batch, amp in dict.fromkeys((one["model"], one["batch_size"], one["amp"]) for one in entries):
            def of(name, compiled, model=model, batch=batch, amp=amp, entries=entries, any_amp=False):
                for one in entries:
                    same = one["model"] == model and one["batch_size"] == batch and (any_amp or one["amp"] == amp)
                    if same and one["name"] == name and one["compiled"] == compiled:
                        return one
                return {}

            best = of(OURS, "compiled") or of(OURS, "")
            if not best:
                continue
            peer, compiled, usual = of(THEIRS, ""), of(THEIRS, "compiled"), of(USUAL, "", any_amp=True)
            ratio = best["images_per_s"]["median"] / peer["images_per_s"]["median"]
            rows.append((
                f"`{model}`, {batch}", device, {"off": "fp32"}.get(amp, amp), cell(best["images_per_s"], spread),
                f"{best['mfu']:.0%}" if "mfu" in best else "", cell(peer["images_per_s"], spread),
                cell(compiled.get("images_per_s"), spread), cell(usual.get("images_per_s"), spread), f"{ratio:.2f}",
            ))  # fmt: skip
    header = ("pretraining step: model, batch", "on", "precision", "radio-mae, images/s", "MFU",
              "transformers' `ViTMAEForPreTraining`", "compiled", "the field's habit", "radio-mae / transformers")
    return table(header, rows) if rows else ""


def fed(records, spread):
    rows = []
    for device, record in by_device(records, "bench_end_to_end"):
        for source, entry in record["fed_from"].items():
            wait = f"{entry['data_wait']['median']:.1%}" if "data_wait" in entry else ""
            rows.append((f"`{record['model']}`, {record['batch_size']}, {source}", device,
                         cell(entry["images_per_s"], spread), f"{entry.get('of_the_step', 1):.0%}", wait))  # fmt: skip
    header = ("`main_pretrain.py`: model, batch, fed from", "on", "images/s", "of the step alone", "waits for data")
    return table(header, rows) if rows else ""


def rest(records, spread):
    rows = []
    for device, record in by_device(records, "bench_segment"):
        for kind, entry in record["devices"].items():
            rows.append(("labelling 61.44 Msps ci16 with `vit_tiny_patch16`, 40 ms windows: s of signal a second",
                         device if kind == "cuda" or "cuda" not in record["devices"] else "its host's CPU",
                         cell(entry["real_time_factor"], spread)))  # fmt: skip
    for device, record in by_device(records, "bench_synthesize"):
        for preset, entry in record["presets"].items():
            name, _, on = preset.partition(", ")
            what = f"`{name}` scenes to spectrograms, {'one core' if on == 'cpu' else on}: s a scene"
            rows.append((what, device, cell(entry["seconds_a_scene"], spread)))
    for device, record in by_device(records, "bench_start"):
        for count, entry in record["seconds"].items():
            for key, how in (("first", "the first time"), ("with_index", "with the index of an earlier run")):
                if spread or int(count) == 100_000:
                    rows.append((f"to open {int(count):,} SigMF recordings, {how}: s", device, cell(entry[key], spread)))
    return table(("", "on", "median"), rows) if rows else ""


def growth(records, spread):
    rows = []
    for device, record in by_device(records, "bench_growth"):
        for entry in record["growth"]:
            memory = f"{entry['memory_bytes'] / 2**30:.1f}" if "memory_bytes" in entry else ""
            rows.append((f"`{record['model']}`, {record['batch_size']}: {entry['what']} {entry['value']}", device,
                         cell(entry["images_per_s"], spread), f"{entry['gflop_an_image']:.1f}", memory))  # fmt: skip
    header = ("how it grows, not compiled: model, batch: what is another", "on", "images/s", "GFLOP an image", "GiB")
    return table(header, rows) if rows else ""


# What stands in which document, and whether with the spread.
DOCUMENTS = {"README.md": ((steps,), False), "docs/SPEED.md": ((data, steps, fed, rest, growth), True)}


def text(document, records):
    """The tables of a document."""
    parts, spread = DOCUMENTS[document]
    return "\n\n".join(found for part in parts if (found := part(records, spread)))


def made(document, records):
    """A document with its tables as the records have them."""
    return common.with_tables(ROOT / document, BEGIN, END, text(document, records))


def update(folder):
    """Put the results of a folder into the documents."""
    records = common.read_results(folder)
    for document in DOCUMENTS:
        new = made(document, records)
        with atomic_path(ROOT / document) as temporary:
            temporary.write_text(new)
        print(f"{document}: tables of {len({record['device'] for _, record in records})} devices")
