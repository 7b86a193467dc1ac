"""Fetch released weights and public data sets, checked; they are kept in one folder.

    # what there is
    python main_download.py list

    # weights: their names can also be given wherever a file of weights can, which fetches them
    python main_download.py mae_vit_base
    python main_finetune.py --task segmentation --model vit_base_patch16 --finetune mae_vit_base --data_path scenes

    # the weights of a repository of the Hugging Face hub, or one file of it
    python main_download.py owner/name
    python main_download.py hf://owner/name/file.safetensors

    # data sets; where a browser or an account is needed, the command says how, and takes the file from there
    python main_download.py mathworks_spectrum_sensing
    python main_download.py ntu_fi_har --from ~/Downloads/NTU-Fi_HAR.zip
    python main_download.py --all-datasets

A download that was stopped goes on when the same command is given again. RADIO_MAE_HOME names the folder, ~/.cache/radio-mae
by default; --offline, or HF_HUB_OFFLINE=1, uses what is there.
"""

import sys

from util import fetch
from util.errors import UserError, reported
from util.flags import Parser

LIST = "list"


def get_args_parser():
    parser = Parser("Fetch released weights and public data sets.")
    parser.add_argument("names", nargs="*", metavar="list | NAME",
                        help="what to fetch, by name, as owner/name or as hf://owner/name/file; list: what there is")
    parser.add_argument("--all-datasets", "--all_datasets", action="store_true", help="fetch every data set")
    parser.add_argument("--from", dest="source", metavar="FILE", help="take the one NAME from a file that you fetched")
    parser.add_argument("--offline", action="store_true", default=None, help="do not use the network; also HF_HUB_OFFLINE=1")
    return parser


def main(args):
    known = fetch.entries()
    if args.names == [LIST] and not args.all_datasets and args.source is None:
        print_table(known.values())
        return
    names = list(dict.fromkeys(args.names))
    if args.all_datasets:
        names += [name for name, entry in known.items() if entry.kind == fetch.DATASET and name not in names]
    if not names or LIST in names:
        raise UserError("expected list alone, or names, or --all-datasets; found " + (" ".join(names) or "none"))
    if args.source is not None and (len(names) != 1 or fetch.hub_address(names[0])):
        raise UserError(f"--from {args.source}: expected one name of the list; found {' '.join(names)}")
    for name in names:
        if name not in known and not fetch.hub_address(name):
            raise fetch.unknown(name, list(known))

    by_hand = []
    try:
        for name in names:
            if args.all_datasets and known[name].how and not fetch.cached(known[name]):
                by_hand.append(name)
                print(f"{name}: fetch it from {known[name].url}: {known[name].how}")
            elif name in known:
                fetch_entry(known[name], args)
            else:
                print(f"{name}: {fetch.resolve(name, args.offline)}")
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        sys.exit(130)
    if by_hand:
        raise UserError(f"--all-datasets: expected to fetch all; found {', '.join(by_hand)}, which take a person (above); "
                        "then: python main_download.py NAME --from FILE")  # fmt: skip


def fetch_entry(entry, args):
    path = fetch.fetch(entry, args.offline, args.source)
    while path.is_dir():  # below folders that hold one folder and nothing else
        inside = [one for one in path.iterdir() if not one.name.startswith((".", "__MACOSX"))]
        if len(inside) != 1 or not inside[0].is_dir():
            break
        [path] = inside
    print(f"{entry.name}: {path}")
    print(f"cite: {entry.citation}")
    print(f"use: {entry.use.replace('PATH', str(path))}")


def print_table(found):
    header = ("name", "kind", "bytes", "checksum", "licence", "here", "what it holds")
    rows = [header]
    for entry in found:
        try:
            here = "yes" if fetch.cached(entry) else "by hand" if entry.how else "no"
        except UserError:
            here = "changed"
        size = "not published" if entry.size is None else f"{entry.size:,}"
        rows.append((entry.name, entry.kind, size, entry.checksum or "not published", entry.licence, here, entry.holds))
    widths = [max(len(row[column]) for row in rows) for column in range(len(header) - 1)]
    for *cells, last in rows:
        print("  ".join([*(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)), last]))


if __name__ == "__main__":
    with reported():
        main(get_args_parser().parse_args())
