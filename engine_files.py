"""Label the recordings in files and folders: annotations, JSON, pictures, and tables on the console."""

import contextlib
import io
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path

from data.splits import relative_paths
from engine_label import PICTURE_STRETCHES, hears_cells, label_stretches, picture
from labelling import report, sigmf_output
from labelling.detection import detection_figures, detection_rows, strong_cells
from labelling.heard import heard
from labelling.outputs import SUFFIXES, plan, tuned
from labelling.truth import Truth
from radio.carriers import annotated_carriers
from radio.recordings import META_SUFFIX, find_recordings
from util.bars import Bar
from util.compiling import can_compile, working_compiler
from util.errors import EndedError, RunError, UserError, few, one_line, warn
from util.files import atomic_path, json_text, writable_folder
from util.metrics import Confusion, aligned, table

SHOWN = 5  # names in a message
COMPILE_WINDOWS = 200_000  # compiling takes about a minute; it pays for more windows


class NotWrittenError(RunError):
    """The files of one recording could not be written; others may be."""


def label_files(segmenter, args, limits):
    """Label all recordings; with `--truth`, print the figures over all of them. Return what became of the data.

    Args:
        args: flags of main_segment.py. limits: `labelling.regions.Limits`.

    Raises:
        UserError: a recording cannot be read, or a file cannot be written.
    """
    given = args.sample_rate, args.datatype, args.swap_iq
    found = tuned(find_recordings(args.recordings, *given, left_out=args.output), args.center_freq)
    found = _usable(found, segmenter)
    if args.truth:
        for one in found:  # impossible edges are an error, before anything is labelled
            annotated_carriers(one)
    refuse_copies_inside(args)
    names = relative_paths([one.path for one in found])
    recordings = plan(found, names, args.output, args.center_freq, args.copy)
    signal_s = sum(channels[0].duration_s for one in recordings for channels in one.stretches)
    pays = signal_s / segmenter.front_end.duration_s > COMPILE_WINDOWS
    with writable_folder(args.output, f"--output {args.output}"), contextlib.ExitStack() as stack:
        if args.compile == "on" or (args.compile == "auto" and pays and can_compile(segmenter.device)):
            stack.enter_context(working_compiler("--compile"))
            segmenter.compile()
        pairs, unwritten = _label_all(recordings, segmenter, args, limits)
    if args.truth and len(recordings) > 1:
        figures = detection_figures(pairs, segmenter.class_names[1:])
        print(f"\nall {len(recordings)} recordings\n{aligned(detection_rows(figures))}")
    if unwritten:
        found = (
            f"{len(unwritten)} of {len(recordings)} recordings could not be written: {few(unwritten, SHOWN)}"
        )
        raise RunError(f"--output {args.output}: expected room for all labels; {found}")
    return _where_the_data_are(recordings, args.copy)


def _usable(recordings, segmenter):
    """The recordings of files with a stretch that can be labelled; the others are left out, with a warning."""
    why = {}  # of a file, by the stretches that cannot be labelled
    for one in recordings:
        why.setdefault((one.path, one.member), []).append((segmenter.unusable(one), one.name))
    bad = {file: some[0] for file, some in why.items() if all(reason for reason, _ in some)}
    if len(bad) == len(why):
        [(path, _), (reason, _)] = next(iter(bad.items()))
        raise UserError(f"{path}: {reason}")
    for (path, _), (reason, name) in bad.items():
        warn(f"{path.with_name(name)}: skipped: {reason}")
    return [one for one in recordings if (one.path, one.member) not in bad]


def refuse_copies_inside(args):
    """Refuse `--copy` into a folder that is searched: the next search would find the data twice."""
    inside = Path(args.output).resolve()
    for path in map(Path, args.recordings):
        if args.copy and path.is_dir() and inside.is_relative_to(path.resolve()):
            expected = f"a folder outside of {path}, where the copies would be more recordings"
            raise UserError(f"--output {args.output}: expected {expected}")


def _label_all(recordings, segmenter, args, limits):
    """Label recordings one after the other: (pairs of `label_file`, names of those that were not written)."""
    pairs, unwritten = [], []
    for number, one in enumerate(recordings):
        try:
            pairs += label_file(one, segmenter, args, limits)
        except NotWrittenError as error:
            warn(error)
            unwritten.append(one.output.name)
        except KeyboardInterrupt as error:
            done = f"{number} of {len(recordings)} recordings are labelled"
            raise EndedError(f"--output {args.output}: {done}; the same command labels all again") from error
    return pairs, unwritten


def _where_the_data_are(recordings, copy):
    """For the console: whether the output folder holds the data of its metadata."""
    count = sum(one.data is not None for one in recordings)
    if not count:
        return "none, SigMF cannot refer to it there"
    held = "copied" if copy else "linked (--copy copies it)"
    return held if count == len(recordings) else f"{held} for {count} of {len(recordings)} recordings"


def label_file(one, segmenter, args, limits):
    """Find the carriers of a `LabelledRecording`, write its files and print its table.

    Returns:
        A pair (found, true) for each stretch, as for `detection_figures`; true is None without `--truth`.
    """
    stretches, rows, confusion, left_out = [], [], Confusion(segmenter.class_names), Counter()
    strong = Counter(cells=0, noise=0)
    truth = partial(Truth, confusion=confusion, left_out=left_out) if args.truth else None
    hear = heard if args.confirm and hears_cells(segmenter.class_names) else None
    total = sum(channels[0].num_samples for channels in one.stretches)
    with Bar(one.first.path.name, total, "samples") as bar:
        settings = {"truth": truth, "progress": bar.add, "hear": hear}
        for stretch in label_stretches(segmenter, one.stretches, limits, args.overlap, **settings):
            if args.only == "confirmed":
                stretch = stretch.only_confirmed()
            if len(rows) < PICTURE_STRETCHES:
                rows.append(stretch.picture_row)
            if args.truth:
                strong.update(strong_cells(stretch.image, stretch.class_map, stretch.column_s))
            stretches.append(replace(stretch, image=None, class_map=None))  # thousands would fill the memory

    pairs, scores = [(stretch.found, stretch.true) for stretch in stretches], {}
    if args.truth:
        figures = detection_figures(pairs, segmenter.class_names[1:])
        scores = {"cells": confusion.results(), "carriers": figures, "strong": dict(strong)}
    print(report.shown(one.first.path.name, stretches), flush=True)
    if args.only and not any(stretch.found for stretch in stretches):
        one.remove()
        print("no files: nothing was confirmed", flush=True)
    else:
        with segmenter.timings.part("writing"):
            write(one, stretches, rows, scores, segmenter, args)
    if args.truth:
        if left_out:
            named = ", ".join(f"{name or '(no label)'} ({count})" for name, count in sorted(left_out.items()))
            warn(f"{one.first.path}: annotations left out of the truth: {named}")
        print(f"\n{table(scores['cells'])}\n\n{aligned(detection_rows(scores['carriers']))}")
        if strong["cells"]:
            share = 100 * strong["noise"] / strong["cells"]
            print(f"strong cells called {segmenter.class_names[0]}: {share:.1f} % of {strong['cells']:,}")
    return pairs


def write(one, stretches, rows, scores, segmenter, args):
    """Write the three files of a recording, or none of them, and its data or a link to them."""
    found = [(each.recording, each.found) for each in stretches]
    metadata = sigmf_output.annotated(one.metadata, found, args.replace)
    try:
        one.output.parent.mkdir(parents=True, exist_ok=True)
        one.provide_data()
    except OSError as error:
        expected = f"expected a folder that can be written; {error.strerror}"
        raise NotWrittenError(f"--output {args.output}: {expected}") from error
    if wrong := sigmf_output.problem(metadata):
        warn(f"{one.file(META_SUFFIX)}: invalid SigMF, because of the metadata of {one.first.path}: {wrong}")
    carriers = [(number, carrier) for number, each in enumerate(stretches) for carrier in each.carriers]
    about = {
        "recording": one.first.path.name,
        "weights": Path(args.weights).name,
        "classes": segmenter.class_names,
        "front_end": segmenter.front_end.settings(),
        "stretches": [report.stretch_fields(each.recording) for each in stretches],
        "carriers": [{"stretch": number, **report.carrier_fields(carrier)} for number, carrier in carriers],
        "left_out": report.dropped_fields(stretches),
        **({"truth": scores} if scores else {}),
    }
    try:
        drawn, png = io.BytesIO(), b""
        figure = picture(rows, len(stretches), segmenter.class_names, about["recording"], about["weights"])
        figure.savefig(drawn, format="png", dpi=100, pil_kwargs={"compress_level": 1})
        png = drawn.getvalue()
    except Exception as error:  # labels do not depend on what a drawing library takes
        warn(f"{one.first.path}: its picture could not be drawn: {one_line(error)}")
    try:
        with contextlib.ExitStack() as stack:  # all files are written before any of them gets its name
            files = [one.file(suffix) for suffix in SUFFIXES]
            meta, plain, shown = (stack.enter_context(atomic_path(file)) for file in files)
            shown.write_bytes(png)
            plain.write_text(json_text(about, 1) + "\n", "utf-8")
            meta.write_text(json_text(metadata, 4) + "\n", "utf-8")
    except OSError as error:
        problem = f"{one.output.name} could not be written: {error.strerror}"
        raise NotWrittenError(f"--output {args.output}: {problem}") from error
