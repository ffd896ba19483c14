"""Protects: an accuracy counts every judged pair once, equal rewards half, and says how sure it is."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from rmkit import Preference, pairwise_accuracy, wilson_interval
from rmkit.metrics import (
    accuracy_table,
    bootstrap_interval,
    brier,
    grouped_folds,
    nll,
    rank_correlation,
    reward_summary,
    spillover_gap,
)

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


def preference(domain: str, group: str, *sizes: int, ranks: tuple[int, ...] = (0, 1)) -> Preference:
    """One whose completions have so many characters."""
    return Preference("?", tuple(chr(97 + i) * n for i, n in enumerate(sizes)), ranks, domain=domain, group=group)


def test_repetitions_are_averaged_pair_by_pair():
    """Of three seeds two rank the first pair right and all the second: 5 of 6, on two pairs."""
    rewards = torch.tensor([[[1.0, 0.0], [1.0, 0.0]], [[1.0, 0.0], [1.0, 0.0]], [[0.0, 1.0], [1.0, 0.0]]])
    accuracy = pairwise_accuracy(rewards, torch.tensor([[0, 1], [0, 1]]))
    assert (accuracy.value, accuracy.pairs) == (pytest.approx(5 / 6), 2)


def test_interval_by_groups_covers_and_wilson_does_not():
    """40 prompts of 6 pairs that succeed or fail together: Wilson takes them for 240, and misses far too often."""
    rng = np.random.default_rng(0)
    covered = {"groups": 0, "wilson": 0}
    for _ in range(200):
        prompt = rng.beta(1.5, 1, 40)  # each prompt has its own difficulty, 0.6 on average
        right = rng.random((40, 6)) < prompt[:, None]
        rewards = torch.tensor(np.stack([right, ~right], -1).reshape(240, 2).astype(float))
        ranks, groups = torch.tensor([[0, 1]] * 240), np.repeat(np.arange(40), 6).tolist()
        for name, found in (
            ("groups", pairwise_accuracy(rewards, ranks, groups)), ("wilson", pairwise_accuracy(rewards, ranks))
        ):  # fmt: skip
            covered[name] += found.low <= 0.6 <= found.high
    assert covered["groups"] >= 0.89 * 200 > covered["wilson"]


def test_bootstrap_draws_whole_groups():
    """Two groups, all of one and nothing of the other: every resample is 0, ½ or 1, and so are the ends."""
    low, high = bootstrap_interval(np.mean, ["a"] * 30 + ["b"] * 30, np.repeat([0.0, 1.0], 30))
    assert (low, high) == (0, 1)
    with pytest.raises(ValueError, match="two groups or more"):
        bootstrap_interval(np.mean, ["a", "a"], np.array([0.0, 1.0]))


def test_nll_and_brier_by_hand():
    """Differences of ln 3 and −ln 3: probabilities ¾ and ¼ for what was better."""
    rewards, ranks = torch.tensor([[math.log(3), 0.0], [0.0, math.log(3)]]), torch.tensor([[0, 1], [0, 1]])
    assert nll(rewards, ranks).value == pytest.approx(-(math.log(0.75) + math.log(0.25)) / 2)
    assert brier(rewards, ranks).value == pytest.approx((1 / 16 + 9 / 16) / 2)
    assert nll(torch.zeros(2, 2), ranks).value == pytest.approx(math.log(2))
    assert brier(torch.tensor([[800.0, 0.0], [0.0, 800.0]]), ranks).value == pytest.approx(0.5)  # no overflow


def test_rank_correlation_is_scipys_with_an_interval():
    rng = np.random.default_rng(1)
    truth = rng.normal(size=200)
    reward = torch.from_numpy(truth + rng.normal(size=200))
    groups = (np.arange(200) // 4).tolist()
    for method, reference in (("spearman", stats.spearmanr), ("kendall", stats.kendalltau)):
        found = rank_correlation(reward, torch.from_numpy(truth), groups, method)
        assert found.value == pytest.approx(reference(reward, truth).statistic)
        assert found.low < found.value < found.high and found.high - found.low < 0.4
    with pytest.raises(ValueError, match="method is one of"):
        rank_correlation(reward, reward, groups, "pearson")
    with pytest.raises(ValueError, match="no ranking to compare"):
        rank_correlation(reward, torch.ones(200), groups)


def test_table_has_length_beside_every_accuracy():
    """Domain x: longer is better once of twice; y: the only decisive pair is shorter; z: a tie alone, no row."""
    data = [
        preference("x", "1", 5, 3), preference("x", "2", 2, 9), preference("y", "3", 1, 4),
        preference("y", "3", 7, 7, ranks=(0, 0)), preference("z", "4", 1, 2, ranks=(0, 0)),
    ]  # fmt: skip
    table = accuracy_table(torch.tensor([[1.0, 0.0]] * 5), data)
    assert list(table.index) == ["x", "y", "all"]
    assert table.longer_wins.tolist() == [0.5, 0.0, pytest.approx(1 / 3)]
    assert table.shorter_wins.tolist() == [0.5, 1.0, pytest.approx(2 / 3)]
    assert table.pairs.tolist() == [2, 1, 3] and table.ties.tolist() == [0, 1, 2]
    assert (table.accuracy == 1).all()
    by_kind = accuracy_table(torch.tensor([[1.0, 0.0]] * 3), data[:3], by=["p", "q", "q"])
    assert list(by_kind.index) == ["p", "q", "all"] and by_kind.pairs.tolist() == [1, 2, 3]


def test_spillover_gap_and_its_interval():
    """90 of 100 inside, 60 of 100 outside: 0.3, and the interval of a difference of two independent shares."""
    inside = [preference("x", str(i), 1, 1) for i in range(100)]
    rewards = [torch.tensor([[1.0, 0.0]] * n + [[0.0, 1.0]] * (100 - n)) for n in (90, 60)]
    gap = spillover_gap((rewards[0], inside), (rewards[1], inside))
    half = 1.96 * math.sqrt(0.9 * 0.1 / 100 + 0.6 * 0.4 / 100)
    assert gap.value == pytest.approx(0.3)
    assert (gap.low, gap.high) == (pytest.approx(0.3 - half, abs=0.02), pytest.approx(0.3 + half, abs=0.02))


def test_summary_of_rewards():
    """Spread is inside prompts; a difference of 5 nats is 99.3 %; the longest has the highest reward throughout."""
    data = [preference("x", "1", 3, 2, 1, ranks=(0, 1, 2)), preference("x", "2", 9, 4)]
    found = reward_summary(torch.tensor([[6.0, 1.0, 0.0], [8.0, 7.0, 99.0]]), data)
    assert found.spread == pytest.approx((6 + 1) / 2) and found.highest == 8
    assert found.saturated == pytest.approx(2 / 4) and found.length_correlation == pytest.approx(1)


def test_folds_keep_groups_whole_and_use_all():
    data = [preference(domain, f"{domain}{i // 2}", 1, 2) for domain in "xy" for i in range(20)]
    folds = list(grouped_folds(data, folds=5, repeats=2))
    assert len(folds) == 10
    for repeat in (folds[:5], folds[5:]):
        assert sorted(i for _, held_out in repeat for i in held_out) == list(range(40))
    for train, held_out in folds:
        assert not {data[i].group for i in train} & {data[i].group for i in held_out}
        assert {data[i].domain for i in held_out} == {"x", "y"}
    assert folds[:5] != folds[5:] and folds == list(grouped_folds(data, folds=5, repeats=2))
