"""How weak a cell may be, how often one is found where none is, and how long the search takes.

    python benchmarks/bench_cell_search.py
    python benchmarks/bench_cell_search.py --captures 0 --scenes 0      # the time alone
    python benchmarks/bench_cell_search.py --progress cells.json        # the same command continues

- *Sensitivity*: one cell in a scene, in a band of unknown frequency, through a TDL channel of up to 1 µs and
  100 Hz, with clocks off by up to 50 ppm. It counts if technology, identity and centre are right. The SNR is
  that of a resource element. NR sends one SSB every 20 ms, in scenes of 5 ms every 5 ms.
- *False alarms*: captures of 2 to 5 ms with up to three distractors, through receivers with DC, humps, gain
  steps, clipping and few bits, as in the preset `wild`; every fourth is noise alone.
- *Seconds*: one core, a band of 20 MHz of noise. The processor's time is beside, for machines that are shared.
"""

import json
import time
from collections import Counter
from pathlib import Path

import common
import torch

from radio.carriers import LTE
from radio.cell_search import search
from radio.rng import TEST, Stream
from radio.scenes.config import WILD, with_settings
from radio.scenes.draw import draw
from radio.scenes.scene import render
from util.files import write_json

RATE_HZ = 20e6
DURATIONS_MS = (5, 20, 40)
SNRS_DB = (-9, -6, -3, 0, 5, 10)
BLOCK = 250  # captures between two saves
ONE_CELL = """num_carriers=1 inside=0 cut=0 margin=0 noise_only=0 part_time=0 num_distractors=0 one_technology=1 compressed=0
    fading_models=TDL-A,TDL-B,TDL-C,TDL-D,TDL-E doppler_hz=0.5,100 clock_error_ppm=-50,50 exact_clock=0 filtered=0
    dc_spike=0 agc=0 bits=0 overdriven=0 hump=0 real_valued=0 padded=0 faint=0 noiseless=0
    noisy_phase=0 unbalanced=0 lte_sync_boost_db=0 nr_ssb_power_db=0 nr_beams=1"""
CELLS = {
    "LTE": "technologies=LTE lte_bandwidths_mhz=5 sample_rates_hz=5.76e6",
    "NR, 15 kHz": "technologies=NR nr_spacings_khz=15 nr_bandwidths_mhz=5 sample_rates_hz=5.76e6",
    "NR, 30 kHz": "technologies=NR nr_spacings_khz=30 nr_bandwidths_mhz=10 sample_rates_hz=11.52e6",
}
NO_CELL = """noise_only=1 num_distractors=0,1,2,3 duration_ms=2,5
    sample_rates_hz=1.92e6,1.92e6,1.92e6,2.4e6,3.84e6,3.84e6,7.68e6"""


def get_args_parser():
    parser = common.get_parser("Sensitivity, false alarms and time of cell search.", repeats=5)
    parser.add_argument("--scenes", type=int, default=40, help="of each SNR, duration and kind of cell")
    parser.add_argument("--captures", type=int, default=10_000, help="without a cell")
    parser.add_argument("--progress", default="", metavar="FILE", help="what has been measured so far")
    return parser


def is_found(scene, cells):
    (sent,) = scene.transmissions
    ssb_hz = 0.0 if sent.label == LTE else sent.cell.ssb_offset_hz - 0.5e3 * sent.cell.ssb_spacing_khz
    for cell in cells:
        right = (cell.technology, cell.cell_id) == (sent.label, sent.cell.cell_id)
        if right and abs(cell.center_freq_hz - sent.offset_hz - ssb_hz) < cell.spacing_hz / 2:
            return cell
    return None


def sensitivity(settings, duration_ms, snr_db, count):
    """Of scenes with one cell: their number, the cells found, and LTE's bandwidths: right, wrong, unknown."""
    periods = f"nr_ssb_periods_ms={20 if duration_ms >= 20 else 5}"
    chosen = f"{ONE_CELL} {settings} {periods} duration_ms={duration_ms} snr_db={snr_db}"
    config, found = with_settings(WILD, chosen.split()), Counter(scenes=count, found=0)
    for number in range(count):
        scene = draw(config, Stream(0, TEST, number))
        if cell := is_found(scene, search(render(scene), scene.sample_rate_hz)):
            found["found"] += 1
            if cell.technology == LTE:
                is_right = cell.num_rb == scene.transmissions[0].cell.num_rb
                found["right" if is_right else "wrong" if cell.num_rb else "unknown"] += 1
    return dict(found)


def false_alarms(first, end):
    """Captures, and those with a cell, by the kind of their first distractor."""
    config, found = with_settings(WILD, NO_CELL.split()), {}
    for number in range(first, end):
        scene = draw(config, Stream(1, TEST, number))
        kind = scene.distractors[0].kind if scene.distractors else "noise"
        counts = found.setdefault(kind, {"captures": 0, "with_a_cell": 0})
        counts["captures"] += 1
        counts["with_a_cell"] += bool(search(render(scene), scene.sample_rate_hz))
    return found


def seconds(duration_ms):
    iq = Stream(2).complex_normal(round(RATE_HZ * duration_ms * 1e-3))
    started, used = time.perf_counter(), time.process_time()
    search(iq, RATE_HZ)
    return time.perf_counter() - started, time.process_time() - used


@torch.inference_mode()
def measure(args):
    common.use_one_core()
    turns = common.by_turns({ms: lambda ms=ms: seconds(ms) for ms in DURATIONS_MS}, args.repeats)
    spent = {
        ms: {
            "seconds": common.spread([one[0] for one in found]),
            "cpu": common.spread([one[1] for one in found]),
        }
        for ms, found in turns.items()
    }
    path = Path(args.progress) if args.progress else None
    done = json.loads(path.read_text()) if path and path.exists() else {}

    def once(key, measured, *given):
        if key not in done:
            done[key] = measured(*given)
            if path:
                write_json(path, done)
        return done[key]

    alarms = {}
    for first in range(0, args.captures, BLOCK):
        end = min(first + BLOCK, args.captures)
        for kind, counts in once(f"captures {first} to {end}", false_alarms, first, end).items():
            sums = alarms.setdefault(kind, dict.fromkeys(counts, 0))
            sums |= {name: sums[name] + value for name, value in counts.items()}
    found = {
        f"{name}, {ms} ms, {snr_db} dB": once(
            f"{name}, {ms} ms, {snr_db} dB, {args.scenes}", sensitivity, settings, ms, snr_db, args.scenes
        )
        for name, settings in (CELLS if args.scenes else {}).items()
        for ms in DURATIONS_MS
        for snr_db in SNRS_DB
    }
    total = sum(one["with_a_cell"] for one in alarms.values())
    about = {"scenes": args.scenes, "captures": args.captures, "false_alarms": total}
    return common.CPU, {**about, "seconds_20_mhz": spent, "sensitivity": found, "without_a_cell": alarms}


if __name__ == "__main__":
    common.run_benchmark(get_args_parser(), measure)
