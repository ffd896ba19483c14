"""Protects: an accuracy counts every judged pair once, equal rewards half, and says how sure it is."""

import pytest
import torch

from rmkit import pairwise_accuracy, wilson_interval

NEWCOMBE = [  # Newcombe 1998, Statistics in Medicine 17, table I, method 3: successes, trials, interval
    (81, 263, 0.2553, 0.3662),
    (15, 148, 0.0624, 0.1605),
    (0, 20, 0.0, 0.1611),
    (1, 29, 0.0061, 0.1718),
]


@pytest.mark.parametrize(("successes", "trials", "low", "high"), NEWCOMBE)
def test_wilson_equals_published_values(successes, trials, low, high):
    assert wilson_interval(successes, trials) == pytest.approx((low, high), abs=5e-5)
    assert wilson_interval(trials - successes, trials) == pytest.approx((1 - high, 1 - low), abs=5e-5)


def test_wilson_never_leaves_the_share_outside():
    """Rounding must not draw an error bar of negative length, which matplotlib refuses."""
    for trials in range(1, 200):
        for successes in (0, 0.5, trials / 3, trials / 2, trials):
            low, high = wilson_interval(successes, trials)
            assert 0 <= low <= successes / trials <= high <= 1


def test_equal_rewards_count_half():
    """One right, one wrong, one of equal rewards: a half, with the interval of 1.5 out of 3."""
    accuracy = pairwise_accuracy(torch.tensor([[2.0, 1.0], [1.0, 2.0], [3.0, 3.0]]), torch.tensor([[0, 1]] * 3))
    assert (accuracy.value, accuracy.pairs, accuracy.tied_rewards, accuracy.tied_judgements) == (0.5, 3, 1, 0)
    assert (accuracy.low, accuracy.high) == wilson_interval(1.5, 3)
    assert str(accuracy) == f"0.500 [{accuracy.low:.3f}, {accuracy.high:.3f}] on 3 pairs"


def test_every_pair_weighs_the_same():
    """Not every preference: a ranking of three has three pairs. Ties by the annotator are counted apart, absent ones not at all."""
    rewards = torch.tensor([[3.0, 1.0, 2.0, 0], [1.0, 0.0, 9.0, 9.0], [5.0, 5.0, 1.0, 0], [4.0, 4.0, 4.0, 0]])
    ranks = torch.tensor([[0, 1, 2, -1], [0, 1, -1, -1], [0, 0, 1, -1], [0, 0, 0, -1]])
    accuracy = pairwise_accuracy(rewards, ranks)
    # the first: right, right, wrong; the second: right; the third: two right and a tie; the fourth: three ties
    assert (accuracy.value, accuracy.pairs) == (pytest.approx(5 / 6), 6)
    assert (accuracy.tied_rewards, accuracy.tied_judgements) == (0, 4)


def test_model_that_says_nothing_is_at_chance():
    accuracy = pairwise_accuracy(torch.ones(50, 2), torch.tensor([[0, 1]] * 50))
    assert (accuracy.value, accuracy.tied_rewards) == (0.5, 50)


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_reward_that_is_no_number_is_refused(broken):
    """Compared, it would count as wrong, or as right. In the place of an absent completion it does not matter."""
    rewards, ranks = torch.tensor([[1.0, 0.0, broken]]), torch.tensor([[0, 1, -1]])
    assert pairwise_accuracy(rewards, ranks).value == 1
    with pytest.raises(ValueError, match="not a finite number"):
        pairwise_accuracy(rewards[:, [0, 2]], ranks[:, :2])


def test_nothing_told_apart_is_no_accuracy():
    with pytest.raises(ValueError, match="no pair was told apart"):
        pairwise_accuracy(torch.tensor([[1.0, 0.0]]), torch.tensor([[0, 0]]))
