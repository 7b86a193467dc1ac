"""The learning rate over a run."""

import pytest
import torch

from util.lr_sched import half_cosine, set_lr


def test_warm_up_is_linear_and_the_rest_half_a_cosine():
    def rate(epoch):
        return half_cosine(epoch, lr=1.0, min_lr=0.2, warmup_epochs=4, epochs=12)

    assert [rate(e) for e in (0, 1, 2.5, 4)] == pytest.approx([0, 0.25, 0.625, 1])
    assert rate(8) == pytest.approx(0.6)  # half-way down
    assert rate(6) == pytest.approx(0.2 + 0.8 * (1 + 2**-0.5) / 2)
    assert rate(12) == pytest.approx(0.2)
    assert rate(13) == pytest.approx(0.2)


@pytest.mark.parametrize("warmup_epochs", [0, 10, 40])
def test_any_warm_up_is_defined(warmup_epochs):
    rates = [half_cosine(e / 4, 1.0, 0.0, warmup_epochs, 10) for e in range(40)]
    assert all(0 <= rate <= 1 for rate in rates)
    assert rates[0] == (1 if warmup_epochs == 0 else 0)


def test_groups_keep_their_scale():
    parameters = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizer = torch.optim.SGD(
        [{"params": parameters[:1]}, {"params": parameters[1:], "lr_scale": 0.5}], lr=1.0
    )
    set_lr(optimizer, 0.3)
    assert [group["lr"] for group in optimizer.param_groups] == [0.3, 0.15]
