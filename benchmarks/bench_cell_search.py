"""How weak a cell may be, how often one is found where none is, and how long the search takes.

    python benchmarks/bench_cell_search.py
    python benchmarks/bench_cell_search.py --captures 0 --scenes 0      # the time alone

- *Sensitivity*: one cell in a scene, in a band of unknown frequency, through a TDL channel of up to 1 µs and
  100 Hz, with clocks off by up to 50 ppm. It counts if technology, identity and centre are right. The SNR is
  that of a resource element. NR sends one SSB every 20 ms, in scenes of 5 ms every 5 ms.
- *False alarms*: captures of 2 to 10 ms with up to three distractors, through receivers with DC, humps, gain
  steps, clipping and few bits, as in the preset `wild`; every fourth is noise alone.
- *Seconds*: one core, a band of 20 MHz of noise. The processor's time is beside, for machines that are shared.
"""

import time
from collections import Counter

import common
import torch

from radio.carriers import LTE
from radio.cell_search import search
from radio.rng import TEST, Stream
from radio.scenes.config import WILD, with_settings
from radio.scenes.draw import draw
from radio.scenes.scene import render

RATE_HZ = 20e6
DURATIONS_MS = (5, 20, 40)
SNRS_DB = (-12, -9, -6, -3, 0, 3)
ONE_CELL = """num_carriers=1 inside=0 cut=0 margin=0 noise_only=0 part_time=0 num_distractors=0 one_technology=1 compressed=0
    fading_models=TDL-A,TDL-B,TDL-C,TDL-D,TDL-E doppler_hz=0.5,100 clock_error_ppm=-50,50 exact_clock=0 filtered=0
    dc_spike=0 agc=0 bits=0 overdriven=0 noisy_phase=0 unbalanced=0 lte_sync_boost_db=0 nr_ssb_power_db=0 nr_beams=1"""
CELLS = {
    "LTE": "technologies=LTE lte_bandwidths_mhz=5 sample_rates_hz=5.76e6",
    "NR, 15 kHz": "technologies=NR nr_spacings_khz=15 nr_bandwidths_mhz=5 sample_rates_hz=5.76e6",
    "NR, 30 kHz": "technologies=NR nr_spacings_khz=30 nr_bandwidths_mhz=10 sample_rates_hz=11.52e6",
}
NO_CELL = """noise_only=1 num_distractors=0,1,2,3 duration_ms=2,10
    sample_rates_hz=1.92e6,1.92e6,2.4e6,3.84e6,3.84e6,7.68e6,20e6"""


def get_args_parser():
    parser = common.get_parser("Sensitivity, false alarms and time of cell search.", repeats=5)
    parser.add_argument("--scenes", type=int, default=40, help="of each SNR, duration and kind of cell")
    parser.add_argument("--captures", type=int, default=10_000, help="without a cell")
    return parser


def is_found(scene, cells):
    (sent,) = scene.transmissions
    ssb_hz = 0.0 if sent.label == LTE else sent.cell.ssb_offset_hz - 0.5e3 * sent.cell.ssb_spacing_khz
    for cell in cells:
        right = (cell.technology, cell.cell_id) == (sent.label, sent.cell.cell_id)
        if right and abs(cell.center_freq_hz - sent.offset_hz - ssb_hz) < cell.spacing_hz / 2:
            return cell
    return None


def sensitivity(settings, duration_ms, count):
    """Of scenes by SNR: the share with their cell found; of LTE's found ones with a bandwidth, the share that is right."""
    periods = f"nr_ssb_periods_ms={20 if duration_ms >= 20 else 5}"
    shares, widths = {}, Counter()
    for snr_db in SNRS_DB if count else ():
        chosen = f"{ONE_CELL} {settings} {periods} duration_ms={duration_ms} snr_db={snr_db}"
        config, hits = with_settings(WILD, chosen.split()), 0
        for number in range(count):
            scene = draw(config, Stream(0, TEST, number))
            cell = is_found(scene, search(render(scene), scene.sample_rate_hz))
            hits += cell is not None
            if cell and cell.technology == LTE:
                widths[cell.num_rb and cell.num_rb == scene.transmissions[0].cell.num_rb] += 1
        shares[snr_db] = hits / count
    known = {"right": widths[True], "wrong": widths[False], "unknown": widths[None]} if widths else None
    return shares, known


def false_alarms(count):
    """Captures and those with a cell, by the kind of their first distractor."""
    config = with_settings(WILD, NO_CELL.split())
    captures, wrong = Counter(), Counter()
    for number in range(count):
        scene = draw(config, Stream(1, TEST, number))
        kind = scene.distractors[0].kind if scene.distractors else "noise"
        captures[kind] += 1
        wrong[kind] += bool(search(render(scene), scene.sample_rate_hz))
    return {kind: {"captures": captures[kind], "with_a_cell": wrong[kind]} for kind in sorted(captures)}


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
    found = {}
    for name, settings in CELLS.items():
        for duration_ms in DURATIONS_MS:
            shares, widths = sensitivity(settings, duration_ms, args.scenes)
            found[f"{name}, {duration_ms} ms"] = {"found": shares} | ({"num_rb": widths} if widths else {})
    alarms = false_alarms(args.captures)
    total = sum(one["with_a_cell"] for one in alarms.values())
    about = {"scenes": args.scenes, "captures": args.captures, "false_alarms": total}
    return common.CPU, {**about, "seconds_20_mhz": spent, "sensitivity": found, "without_a_cell": alarms}


if __name__ == "__main__":
    common.run_benchmark(get_args_parser(), measure)
