"""Fetch released weights and public data sets, check them, and keep them in one folder.

    # list them
    python main_download.py list

    # weights; every flag that takes a file of weights takes such a name too, and fetches it
    python main_download.py mae_vit_base
    python main_finetune.py --finetune mae_vit_base --task segmentation --data_path scenes

    # the weights of a repository of the Hugging Face hub, or one file of it
    python main_download.py owner/name
    python main_download.py hf://owner/name/file.safetensors

    # data sets; some need a browser or an account: the command says how, and takes your file with --from
    python main_download.py mathworks_spectrum_sensing
    python main_download.py ntu_fi_har --from ~/Downloads/NTU-Fi_HAR.zip
    python main_download.py --all-datasets

The same command resumes a download. RADIO_MAE_HOME names the folder, by default ~/.cache/radio-mae.
--offline, or HF_HUB_OFFLINE=1, uses the cache alone.
"""

from util import interrupts  # noqa: F401, first: Ctrl-C may come while libraries are imported

# isort: split
from util import fetch
from util.errors import UserError, reported, stopped
from util.flags import Parser

LIST = "list"


def get_args_parser():
    parser = Parser("Fetch released weights and public data sets.")
    add = parser.add_argument
    names = "a name of the list, owner/name or hf://owner/name/file; list: print the list"
    add("names", nargs="*", metavar="list | NAME", help=names)
    add("--all-datasets", "--all_datasets", action="store_true", help="fetch every data set")
    add("--from", dest="source", metavar="FILE", help="take NAME from a file that you fetched")
    add("--offline", action="store_true", default=None, help="do not use the network; also HF_HUB_OFFLINE=1")
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
        found = " ".join(names) or "none"
        raise UserError(f"expected list alone, or names, or --all-datasets; found {found}")
    if args.source is not None and (len(names) != 1 or fetch.hub_address(names[0])):
        raise UserError(f"--from {args.source}: expected one name of the list; found {' '.join(names)}")
    for name in names:
        if name not in known and not fetch.hub_address(name):
            raise fetch.unknown(name, list(known))

    by_hand = []
    with stopped("the part that came is kept"):
        for name in names:
            if args.all_datasets and known[name].how and not fetch.cached(known[name]):
                by_hand.append(name)
                print(f"{name}: fetch it from {known[name].url}: {known[name].how}")
            elif name in known:
                fetch_entry(known[name], args)
            else:
                print(f"{name}: {fetch.resolve(name, args.offline)}")
    if by_hand:
        left = f"{', '.join(by_hand)}, which a person must fetch (see above)"
        command = "python main_download.py NAME --from FILE"
        raise UserError(f"--all-datasets: expected to fetch all; found {left}; then: {command}")


def fetch_entry(entry, args):
    path = fetch.fetch(entry, args.offline, args.source)
    while path.is_dir():  # skip folders that hold one folder and nothing else
        inside = [one for one in path.iterdir() if not one.name.startswith((".", "__MACOSX"))]
        if len(inside) != 1 or not inside[0].is_dir():
            break
        [path] = inside
    print(f"{entry.name}: {path}")
    print(f"cite: {entry.citation}")
    print(f"use: {entry.use.replace('PATH', str(path))}")


def print_table(found):
    rows = [("name", "kind", "bytes", "checksum", "licence", "here", "what it holds")]
    for entry in found:
        try:
            here = "yes" if fetch.cached(entry) else "by hand" if entry.how else "no"
        except UserError:
            here = "changed"
        size = "not published" if entry.size is None else f"{entry.size:,}"
        checksum = entry.checksum or "not published"
        rows.append((entry.name, entry.kind, size, checksum, entry.licence, here, entry.holds))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


if __name__ == "__main__":
    with reported():
        main(get_args_parser().parse_args())
