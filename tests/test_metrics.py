"""Protects: an accuracy counts every judged pair once, equal rewards half, and says how sure it is."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from rmkit import Preference, pairwise_accuracy, wilson_interval
from rmkit.metrics import (
    accuracy_difference,
    accuracy_table,
    average_ranks,
    bootstrap_interval,
    brier,
    grouped_folds,
    nll,
    order_numbers,
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


def test_ranks_are_counted_as_scipy_sorts_them():
    """Also of drawn rows, in which some values are missing and others double; ties share the mean of their ranks."""
    rng = np.random.default_rng(0)
    values = np.column_stack([rng.normal(size=60), rng.integers(0, 4, 60), np.zeros(60)])
    orders = order_numbers(values)
    for rows in (np.arange(60), rng.integers(0, 60, 90)):
        np.testing.assert_array_equal(average_ranks(orders[rows]), stats.rankdata(values[rows], axis=0))


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
    assert found.spread == pytest.approx((6 + 1) / 2) and (found.lowest, found.highest) == (0, 8)
    assert (found["mean"], found.standard_deviation) == (pytest.approx(4.4), pytest.approx(np.std([6, 1, 0, 8, 7])))
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


def test_all_alike_is_not_certain():
    """30 right pairs of 10 prompts: a bootstrap cannot see that an eleventh might be wrong; Wilson's of 10 trials can."""
    rewards, ranks = torch.tensor([[1.0, 0.0]] * 30), torch.tensor([[0, 1]] * 30)
    found = pairwise_accuracy(rewards, ranks, [i // 3 for i in range(30)])
    assert (found.value, found.low, found.high) == (1, pytest.approx(wilson_interval(10, 10)[0]), 1)
    assert pairwise_accuracy(rewards, ranks, ["one"] * 30).low == pytest.approx(wilson_interval(1, 1)[0])


def test_repeated_rows_do_not_make_a_model_surer():
    """Every preference ten times in its own group: all intervals by groups stay as wide as they were."""
    rng = np.random.default_rng(2)
    rewards = torch.from_numpy(rng.normal(size=(60, 2)) + [0.4, 0])
    data = [preference("x", str(i), int(a), int(b)) for i, (a, b) in enumerate(rng.integers(1, 30, (60, 2)))]
    copies, tenfold = data * 10, rewards.repeat(10, 1)
    ranks, groups = torch.tensor([[0, 1]] * 600), [p.group for p in copies]
    for metric in (pairwise_accuracy, nll, brier):
        wide, once, narrow = (
            metric(tenfold, ranks, groups),
            metric(rewards, ranks[:60], groups[:60]),
            metric(tenfold, ranks),
        )
        assert wide.high - wide.low == pytest.approx(once.high - once.low, rel=0.1), metric
        assert wide.high - wide.low > 2 * (narrow.high - narrow.low), metric
    rating = torch.from_numpy(rng.normal(size=60)) + rewards[:, 0]
    wide = rank_correlation(tenfold[:, 0], rating.repeat(10), groups)
    narrow = rank_correlation(tenfold[:, 0], rating.repeat(10), list(range(600)))
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)
    gap, gap_once = (spillover_gap((r, d), (-r, d)) for r, d in ((tenfold, copies), (rewards, data)))
    assert gap.high - gap.low == pytest.approx(gap_once.high - gap_once.low, rel=0.1)
    table, once = accuracy_table(tenfold, copies).loc["x"], accuracy_table(rewards, data).loc["x"]
    assert table.high - table.low == pytest.approx(once.high - once.low, abs=0.02)


def test_difference_of_two_models_on_the_same_pairs():
    """They disagree on 10 of 100 pairs, 8 for the one: 0.06, with an interval far narrower than each accuracy's."""
    ranks = torch.tensor([[0, 1]] * 100)
    one, other = (torch.tensor([[1.0, 0.0]] * n + [[0.0, 1.0]] * (100 - n)) for n in (68, 60))
    other[98:] = torch.tensor([1.0, 0.0])  # two that only the other ranks right
    found, alone = accuracy_difference(one, other, ranks), pairwise_accuracy(one, ranks)
    assert found.value == pytest.approx(0.06) and found.low < 0.06 < found.high
    assert found.high - found.low < (alone.high - alone.low) * 0.8
    repeated = accuracy_difference(torch.stack([one, one]), torch.stack([other, other]), ranks)
    assert (repeated.value, repeated.low) == (found.value, found.low)


def test_gap_to_a_side_of_few_groups_is_a_number():
    inside = [preference("x", str(i), 1, 1) for i in range(40)]
    outside = [preference("y", f"o{i % 3}", 1, 1) for i in range(9)]
    gap = spillover_gap(
        (torch.tensor([[1.0, 0.0]] * 40), inside), (torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]] * 3), outside)
    )
    assert gap.value == pytest.approx(1 / 3) and gap.low <= gap.value <= gap.high


def test_any_type_of_rewards_is_measured_alike():
    """Unsigned integers wrap around when subtracted, half precision overflows, and a training batch has a gradient."""
    ranks = torch.tensor([[0, 1], [0, 1]])
    assert pairwise_accuracy(torch.tensor([[1, 2], [1, 2]], dtype=torch.uint8), ranks).value == 0
    assert pairwise_accuracy(torch.tensor([[6e4, -6e4], [1.0, 0.0]], dtype=torch.float16), ranks).value == 1
    assert nll(torch.zeros(2, 2, requires_grad=True), ranks).value == pytest.approx(math.log(2))


def test_equal_rewards_are_counted_once_over_repetitions():
    assert pairwise_accuracy(torch.zeros(5, 30, 2), torch.tensor([[0, 1]] * 30)).tied_rewards == 30


def test_table_refuses_what_does_not_fit():
    data = [preference("x", "1", 5, 3), preference("y", "2", 2, 9)]
    for rewards, by in ((torch.ones(3, 2), None), (torch.ones(2, 2), ["x"]), (torch.ones(2, 2), ["x", "all"])):
        with pytest.raises(ValueError, match="one reward row and one value of `by`, other than 'all', a preference"):
            accuracy_table(rewards, data, by)


def test_folds_of_two_seeds_are_not_the_same_folds():
    data = [preference("x", str(i), 1, 2) for i in range(20)]
    assert list(grouped_folds(data, repeats=2))[5:] != list(grouped_folds(data, seed=1))
