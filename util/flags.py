"""Parse the flags of a command, remember which were given, and report a mistake in one line."""

import argparse
import contextlib
import difflib
import math
import re
import sys

from util.errors import UserError, warn

# Flags of MAE and of timm's scripts that these commands do not have, and their replacements.
OF_MAE = {
    "dist_eval": "several processes always share the evaluation, and every sample counts once",
    "nb_classes": "the data has the classes; --classes names those of annotated recordings",
    "aa": "pictures are not augmented like photographs; --time_shift and --flip are for spectrograms",
    "color_jitter": "spectrograms have no colours; --time_shift and --flip augment them",
    "cutmix_minmax": "--cutmix ALPHA draws the size of the box",
    "no_pin_mem": "--no-pin_mem",
    "num_workers_val": "--num_workers",
    "warmup_lr": "warm-up starts at 0; --warmup_epochs is its length",
    "print_freq": "a line comes every 20 steps",
    "drop": "--drop_path",
    "opt_betas": "AdamW's are (0.9, 0.95) in pretraining and (0.9, 0.999) in fine-tuning",
}
for _replacement, _names in {
    "torchrun --nproc_per_node=N starts the command": "world_size local_rank dist_on_itp dist_url",
    "nothing is erased; --mask_ratio of main_pretrain.py hides patches": "reprob remode recount resplit",
    "--mixup ALPHA and --cutmix ALPHA mix every pair": "mixup_prob mixup_switch_prob mixup_mode",
}.items():
    OF_MAE |= dict.fromkeys(_names.split(), _replacement)

# Least values of flags, for every command that has them.
_POSITIVE = "batch_size epochs accum_iter save_every_epochs val_every scenes seeds head_depth knn"
_POSITIVE += " nodes processes_per_node cpus_per_process"
_NOT_NEGATIVE = "weight_decay blr lr min_lr warmup_epochs start_epoch seed save_every_steps keep num_workers"
_NOT_NEGATIVE += " mixup cutmix smoothing train val test gpus_per_node max_timeouts max_restarts"
LEAST = dict.fromkeys(_POSITIVE.split(), 1) | dict.fromkeys(_NOT_NEGATIVE.split(), 0) | {"timeout_min": 5}
# Largest values. More overflows a number's type, or cannot be meant; other numbers have to be finite.
MOST = dict.fromkeys(["lr", "blr", "min_lr", "weight_decay"], 1e30) | {"seed": 2**63 - 1, "head_depth": 100}
MOST |= dict.fromkeys(["batch_size", "accum_iter", "knn"], 2**20) | {"num_workers": 4096, "lora": 4096}
MOST |= dict.fromkeys(
    ["scenes", "train", "val", "test", "labels_per_class", "keep", "save_every_steps"], 2**40
)
MOST |= dict.fromkeys(["epochs", "warmup_epochs", "val_every", "save_every_epochs"], 10**7) | {"seeds": 10**4}
MOST |= {"dist_timeout_s": 10**7, "n_fft": 2**22, "timeout_min": 10**7, "mixup": 1e6, "cutmix": 1e6}
FREE = {"clip_grad"}  # may be infinite: no limit
EMPTY = {"finetune", "resume", "licence", "flags"}  # may be "", as in MAE


_UNITS = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9}


def hertz(text):
    """A frequency or sample rate for argparse: 20e6, 20M, "20 MHz", 1.92Msps."""
    match = re.fullmatch(r"\s*([+-]?[\d.]+(?:[eE][+-]?\d+)?)\s*([kKMG]?)(?:Hz|hz|sps|Sps|S/s)?\s*", text)
    with contextlib.suppress(ValueError):
        return float(match[1]) * _UNITS[match[2]] if match else float(text)
    raise argparse.ArgumentTypeError(f"expected a number of Hz, such as 20e6, 20M or 20MHz; found {text!r}")


class Flags(argparse.Namespace):
    """Values by name; `given` has the names of the flags on the command line, `vars` the values alone.

    `actions` has argparse's rule for each name.
    """

    __slots__ = ("actions", "given")

    def replaced(self, **values):
        """A copy with other values."""
        flags = Flags(**vars(self) | values)
        flags.given, flags.actions = self.given, getattr(self, "actions", {})
        return flags

    def taken(self, values, path):
        """A copy with values that a file says.

        Raises:
            UserError: one is none that its flag could have.
        """
        for name, value in values.items():
            if name in self.actions and not _fits(self.actions[name], value):
                raise UserError(f"{path}: expected a value of --{name} in 'args'; found {value!r:.60}")
        return self.replaced(**values)

    def with_defaults(self, values):
        """A copy in which the flags that are None have the given values."""
        missing = {name: value for name, value in values.items() if getattr(self, name, 0) is None}
        return self.replaced(**missing)

    def warn_unused(self, *rows):
        """Warn of flags that are given though nothing uses them.

        Args:
            rows: (whether they are unused, their names, why).
        """
        found = {
            name: why for unused, names, why in rows if unused for name in names.split() if name in self.given
        }
        if found:
            warn(f"nothing here uses {', '.join(f'--{name} ({why})' for name, why in found.items())}")

    def check_ranges(self):
        """Refuse numbers below `LEAST` or above `MOST`, and those that are not finite."""
        for name, values in vars(self).items():
            for value in values if isinstance(values, list) else [values]:
                if isinstance(value, bool) or not isinstance(value, int | float):
                    continue
                if not value >= LEAST.get(name, value if value == value else 0):
                    raise UserError(f"--{name}: expected at least {LEAST.get(name, 0)}; found {value}")
                if value > MOST.get(name, value):
                    raise UserError(f"--{name}: expected at most {MOST[name]}; found {value}")
                if not math.isfinite(value) and name not in FREE:
                    raise UserError(f"--{name}: expected a finite number; found {value}")


def _fits(action, value):
    """Whether a flag could have this value."""
    if value is None:
        return True
    if action.nargs == 0:
        return isinstance(value, bool)
    values = value if action.nargs in ("+", "*") else [value]
    try:
        parsed = [one if action.type is None else action.type(str(one)) for one in values]
    except (ValueError, TypeError, argparse.ArgumentTypeError):
        return False
    same = isinstance(values, list) and parsed == values
    typed = all(isinstance(one, str) for one in values) or action.type is not None
    return same and typed and (action.choices is None or all(one in action.choices for one in values))


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Help that shows defaults, except those that say nothing."""

    def _get_help_string(self, action):
        has_none = action.default is None or action.default is False or action.default in ("", [])
        return action.help if has_none else super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """A parser without abbreviations, with defaults in its help, that reports a mistake in one line.

    Args:
        elsewhere: {flag of another program, without dashes: its replacement here}.
    """

    def __init__(self, description, elsewhere=()):
        super().__init__(description=description, formatter_class=_Help, allow_abbrev=False)
        self.elsewhere, self._words = dict(elsewhere), []

    def parse_known_args(self, args=None, namespace=None):
        """(`Flags`, list of unknown words)."""
        self._words = list(sys.argv[1:] if args is None else args)
        actions = [action for action in self._actions if action.default is not argparse.SUPPRESS]
        defaults = {action.dest: action.default for action in actions}
        unset = object()  # argparse sets no default where the namespace has a value
        began = dict.fromkeys(defaults, unset)
        lists = [action.dest for action in actions if isinstance(action, argparse._AppendAction)]
        began |= {name: list(defaults[name]) for name in lists}  # which argparse appends to
        found, unknown = super().parse_known_args(args, argparse.Namespace(**began))
        given = {name: value for name, value in vars(found).items() if value is not unset}
        given = {name: value for name, value in given.items() if name not in lists or value != defaults[name]}
        for name in given.keys() - EMPTY:
            if "" in (given[name] if isinstance(given[name], list) else [given[name]]):
                self.error(f"argument --{name}: expected a value; found an empty one")
        flags = Flags(**defaults | given)
        flags.given, flags.actions = frozenset(given), {action.dest: action for action in actions}
        return flags, unknown

    def parse_args(self, args=None, namespace=None):
        """`Flags`; a mistake ends the command with status 2."""
        flags, unknown = self.parse_known_args(args)
        if unknown:
            self.error(self._about(next((word for word in unknown if word.startswith("-")), unknown[0])))
        return flags

    def error(self, message):
        """Report a mistake in the form of `util.errors.reported`."""
        if "are required" in message:  # a flag that is spelled otherwise is the likelier mistake
            flags = [word for word in self._words if re.match("--?[a-z]", word)]
            unknown = [word for word in flags if word.partition("=")[0] not in self._option_string_actions]
            message = self._about(unknown[0]) if unknown else message
        message = re.sub(r"^argument (\S+): ", r"\1: ", " ".join(message.split()))
        print(f"error: {message} (--help lists the flags)", file=sys.stderr)
        sys.exit(2)

    def _about(self, word):
        flag = word.partition("=")[0]
        if flag.lstrip("-") in self.elsewhere:
            return f"{flag}: not a flag here: {self.elsewhere[flag.lstrip('-')]}"
        near = difflib.get_close_matches(flag, self._option_string_actions, 3, 0.6)
        return f"{flag}: not a flag here" + (f"; the nearest: {', '.join(near)}" if near else "")
