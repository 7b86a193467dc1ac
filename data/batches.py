"""The batches of an epoch, on the device and ready for the model."""

from data.feeding import make_loader
from data.sampling import EpochBatches
from util import distributed


class Batches:
    """Iterates over the batches of an epoch; each process has its own share of them.

    A batch is a dict: `images`, float32 [B, C, F, T]; `noise`, float32 [B, numbers]; `target`, where the samples have labels;
    `index`, int64 [B] on the CPU; `real`, how many of the samples count: all, or 0 where this process has none left and
    loads a sample of another for company.

    Args:
        dataset: with `batch` and `sample_bytes`, as `data.sampling.MaskedSamples`.
        front_end: makes images, on the device.
        args: flags with `batch_size`, `seed`, `num_workers` and `pin_mem`.
        shuffle: in an order that (seed, epoch) decides; drop_single: see `EpochBatches`.
    """

    def __init__(self, dataset, front_end, device, args, shuffle=False, drop_single=False):
        self.dataset, self.front_end, self.device = dataset, front_end, device
        self._order = EpochBatches(
            len(dataset),
            args.batch_size,
            args.seed,
            shuffle,
            drop_single,
            distributed.rank(),
            distributed.world_size(),
        )
        self._loader = make_loader(
            dataset, self._order, args.num_workers, args.pin_mem and device.type == "cuda"
        )
        self._feed = None

    def start(self, epoch, first=0):
        """Have the next iteration begin with this batch of this epoch."""
        self._order.epoch, self._order.first_batch = epoch, first

    @property
    def first(self):
        """The batch that an iteration begins with."""
        return self._order.first_batch

    def __len__(self):
        """Batches of a whole epoch."""
        return len(self._order)

    def __iter__(self):
        self._feed = self._loader.batches(self.front_end, self.device)
        for number, batch in enumerate(self._feed, self.first):
            yield batch | {"real": self._order.real(number)}

    def waited_s(self):
        """Seconds that training waited for data since this was last asked."""
        return self._feed.waited_s()

    def place(self, number):
        """Place in the epoch of the first sample of this process's batch."""
        return self._order.first(number)

    def group_samples(self, number, count):
        """Samples, of all processes, in `count` batches from a number on; fewer at the end of the epoch."""
        together = self._order.together
        return min(count * together, self._order.kept_samples - number * together)
