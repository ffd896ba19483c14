"""Protects: `report` measures what is planted, says of it what its rules say, in either direction, and shows no markup of the data."""

import io
import math
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from rmkit import (
    Preference,
    PreferenceError,
    RewardModel,
    calibration,
    findings,
    load_backbone,
    metrics,
    pairwise_accuracy,
    plots,
    report,
    reporting,
)
from rmkit.batching import ranks_tensor
from rmkit.calibration import fit_temperature, reliability


@pytest.fixture(scope="module", autouse=True)
def quick(tmp_path_factory):
    """Fewer draws than a report makes: what is planted here is larger than what they add. And a store of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "RESAMPLES", 40)
        patch.setattr(calibration, "CHANCE_DRAWS", 40)
        patch.setattr(findings, "CHANCE_DRAWS", 40)
        patch.setenv("RMKIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def no_figure(monkeypatch):
    monkeypatch.setattr(reporting, "_page", lambda *_: (plots.new_figure()[0], []))


undrawn = pytest.mark.usefixtures("no_figure")  # of what is asked of the table alone


@pytest.fixture(scope="module")
def loaded(tiny_folder):
    torch.manual_seed(0)
    return RewardModel(load_backbone(str(tiny_folder)), trainable="head").eval()


@pytest.fixture
def model(loaded):
    """As it was loaded, whatever rewards the test before had planted."""
    vars(loaded).pop("rewards", None)
    return loaded


class Planted:
    """Makes a model give the rewards that a test wants: a list of them for each preference."""

    def __init__(self, model):
        self.model, self.rewards = model, {}
        model.rewards = self.give

    def give(self, encoded):
        rows = [self.rewards[e.prompt, e.completions] for e in encoded]
        most = max(map(len, rows))
        return torch.tensor([[*row, *[0.0] * (most - len(row))] for row in rows])

    def pairs(self, leads, name="held", **fields):
        """A pair for each lead of the better one over the other, of two answers of one length, in a group of its own."""
        made = [Preference(f"{name} {i}?", ("a good one", "a poor one"), **fields) for i in range(len(leads))]
        return self.give_to(made, [[float(lead), 0.0] for lead in leads])

    def give_to(self, preferences, rewards):
        for e, row in zip(self.model.encode(preferences), rewards, strict=True):
            self.rewards[e.prompt, e.completions] = row
        return preferences


@pytest.fixture
def planted(model):
    return Planted(model)


def leads(right, wrong, size=1.0):
    return [size] * right + [-size] * wrong


def reading(found, what):
    return found.table.reading[what]


# --- known answers ------------------------------------------------------------------------------------------


@undrawn
def test_model_that_is_exactly_right(model, planted):
    found = report(model, planted.pairs([1, 2] * 20), planted.pairs([1, 3] * 30, "train"))
    table = found.table
    assert list(table.columns) == ["measured", "low", "high", "beside", "reading"]
    assert table.measured["held-out accuracy"] == table.measured["training accuracy"] == 1
    assert table.loc["training minus held-out", ["measured", "low", "high"]].tolist() == [0, 0, 0]
    assert reading(found, "training minus held-out").startswith("No sign that it overfits")
    assert reading(found, "held-out accuracy").startswith("Better than chance. Better than “the longer wins” by 0.500")
    assert reading(found, "best temperature").startswith("There is none: no pair is ranked wrong")
    assert math.isnan(table.measured["best temperature"])
    body = found._body()
    assert len(found.surest_mistakes) == 0 and "No held-out pair is ranked wrong." in body
    assert ">none</td>" in body and ">nan</td>" not in body


@undrawn
def test_the_numbers_are_those_of_the_models_rewards(model):
    """Of a model with nothing planted; which stays as it was, and keeps what its frozen layers gave."""
    held = [Preference(f"What is {i}?", ("It is this " + "long " * (i % 5), f"It is {i * i}.")) for i in range(30)]
    train = [replace(p, prompt=f"{p.prompt} Say.", group="") for p in held[:24]]
    model.train()
    found = report(model, held, train, {"other": held[:10]})
    rewards = model.rewards(held)
    assert model.training and model.trunk is None
    assert found.table.measured["held-out accuracy"] == pytest.approx(
        pairwise_accuracy(rewards, ranks_tensor(held)).value, abs=1e-4
    )
    assert found.table.measured["NLL (nats)"] == pytest.approx(metrics.nll(rewards, ranks_tensor(held)).value, abs=1e-4)
    assert found.table.measured["training accuracy"] == pytest.approx(
        pairwise_accuracy(model.rewards(train), ranks_tensor(train)).value, abs=1e-4
    )
    went_through = []
    hook = model.body.layers[0].register_forward_hook(lambda *_: went_through.append(1))
    assert report(model, held, train).table.measured["held-out accuracy"] == found.table.measured["held-out accuracy"]
    assert not went_through
    model.eval().rewards([Preference("Something new?", ("Yes.", "No."))])
    assert went_through  # or the line above could not fail
    hook.remove()


@undrawn
def test_rows_without_data_are_left_out(model, planted):
    held = planted.pairs(leads(30, 10))
    alone = report(model, held)
    assert list(alone.table.index) == [
        "held-out accuracy", "NLL (nats)", "calibration error", "best temperature", "pairs above 99 %"
    ]  # fmt: skip
    full = report(model, held, planted.pairs(leads(30, 10), "train"), {"poems": planted.pairs(leads(20, 20), "poem")})
    assert set(full.table.index) - set(alone.table.index) == {
        "training accuracy", "training minus held-out", "poems accuracy", "held-out minus poems", "leaks"
    }  # fmt: skip
    assert full.heading.endswith("40 held-out, 40 training, 40 poems preferences")


@undrawn
def test_rankings_and_ties(model, planted):
    """Equal ranks are no pair, a tie alone no preference, and equal rewards are half right."""
    made = [
        Preference("one", ("a", "b", "c"), (0, 1, 2)),
        Preference("two", ("a", "b"), (0, 0)),
        Preference("three", ("a", "b", "c"), (0, 0, 1)),
        Preference("four", ("a", "b"), domain="d"),
    ]
    planted.give_to(made, [[1.0, 3.0, 2.5], [5.0, 1.0], [2.0, 1.0, 1.5], [1.0, 1.0]])
    found = report(model, made)
    # of one: a under b, a under c, b over c; of three: a over c, b under c; of four: equal
    assert found.table.measured["held-out accuracy"] == pytest.approx(2.5 / 6, abs=1e-4)
    assert "Pairs with equal rewards, which count half: 1." in reading(found, "held-out accuracy")
    mistakes = found.surest_mistakes
    assert mistakes[["prompt", "chosen", "rejected"]].values.tolist() == [
        ["one", "a", "b"], ["one", "a", "c"], ["three", "b", "c"]
    ]  # fmt: skip
    assert mistakes.difference.tolist() == [-2.0, -1.5, -0.5]
    assert repr(found) == "<report on 4 held-out preferences>"
    assert "Pairs with equal" not in reading(report(model, planted.pairs(leads(3, 2))), "held-out accuracy")


@undrawn
def test_five_surest_mistakes(model, planted):
    sizes = [-0.5, 2, -3, -1, 1, -2, -4, -0.1]
    found = report(model, planted.pairs(sizes, domain="tea"))
    assert found.surest_mistakes.difference.tolist() == [-4, -3, -2, -1, -0.5]
    assert found.surest_mistakes.prompt.tolist() == ["held 6?", "held 2?", "held 5?", "held 3?", "held 0?"]
    assert set(found.surest_mistakes.domain) == {"tea"}


# --- readings, in either direction --------------------------------------------------------------------------


@undrawn
@pytest.mark.parametrize(
    ("train", "held", "says"),
    [
        (leads(60, 0), leads(36, 24), "It overfits: so large a gap is no chance. That alone is no reason to stop"),
        (leads(36, 24), leads(60, 0), "The held-out pairs are the easier ones"),
        (leads(45, 15), leads(44, 16), "No sign that it overfits; a gap of up to 0."),
    ],
)
def test_overfitting(model, planted, train, held, says):
    found = report(model, planted.pairs(held), planted.pairs(train, "train"))
    row = found.table.loc["training minus held-out"]
    share = [sum(lead > 0 for lead in side) / 60 for side in (train, held)]
    assert row.measured == pytest.approx(share[0] - share[1], abs=1e-4) and row.low <= row.measured <= row.high
    assert row.reading.startswith(says)


@undrawn
@pytest.mark.parametrize(
    ("elsewhere", "accuracy", "gap"),
    [
        (leads(12, 28), "Worse than chance: are chosen and rejected exchanged", "It ranks these worse: that is shift"),
        (leads(30, 10), "Better than chance.", "No sign that it ranks these worse or better"),
        (leads(40, 0), "Better than chance.", "These are easier for it"),
        (leads(20, 20), "Cannot be told from chance", "It ranks these worse"),
    ],
)
def test_elsewhere(model, planted, elsewhere, accuracy, gap):
    held = planted.pairs(leads(30, 10))
    found = report(model, held, elsewhere={"poems": planted.pairs(elsewhere, "poem")})
    assert found.table.measured["poems accuracy"] == sum(lead > 0 for lead in elsewhere) / 40
    assert reading(found, "poems accuracy").startswith(accuracy)
    assert reading(found, "held-out minus poems").startswith(gap)


@undrawn
def test_ceiling(model, planted):
    """0.9 is measured, on training pairs as on held-out ones."""
    held, train = planted.pairs(leads(90, 10)), planted.pairs(leads(90, 10), "train")
    for ceiling, says, of_training in (
        (0.99, "Below the ceiling.", "It has learned from these pairs"),
        (0.88, "The interval reaches the ceiling.", "It has learned from these pairs"),
        (0.6, "Above the ceiling, where no model can be", "Above the ceiling: it has learned the annotators' errors"),
    ):
        found = report(model, held, train, ceiling=ceiling)
        assert says in reading(found, "held-out accuracy") and f"ceiling {ceiling:.3f}" in found.table.beside.iloc[1]
        assert reading(found, "training accuracy").startswith(of_training)
    assert "ceiling" not in "".join(report(model, held, train).table.stack().map(str))


@undrawn
def test_training_accuracy_that_is_chance_or_perfect(model, planted):
    held = planted.pairs(leads(20, 20))
    found = report(model, held, planted.pairs(leads(22, 18), "train"))
    assert reading(found, "training accuracy").startswith("Not above chance even on what it was trained on")
    found = report(model, held, planted.pairs(leads(40, 0), "easy"))
    assert "almost without error" in reading(found, "training accuracy")


@undrawn
def test_planted_leaks_are_counted(model, planted):
    """And what is measured without them is said."""
    tied = planted.give_to([Preference("tie?", ("a", "b"), (0, 0))] * 2, [[0.0, 0.0]] * 2)
    held, train = tied + planted.pairs(leads(30, 10)), planted.pairs(leads(20, 5), "train")
    found = report(model, held, train)
    assert found.table.measured["leaks"] == 0 and reading(found, "leaks") == "No prompt or group is on both sides."
    assert "Leaks" not in reading(found, "training minus held-out")
    found = report(model, held, [*train, *held[-3:]])
    assert found.table.measured["leaks"] == 3
    assert f"the other 37 pairs have an accuracy of {30 / 37:.3f}" in reading(found, "leaks")
    assert reading(found, "training minus held-out").endswith("Leaks hide a part of it.")
    assert re.search(r"<th>leaks</th>\s*<td>3</td>", found._body())
    assert reading(report(model, held, held), "leaks").startswith("All that is held out was seen in training")


def of_lengths(planted, rows):
    """Pairs of (the better one is longer, it is ranked right)."""
    long, short = "yes " * 12, "yes"
    made = [
        Preference(f"length {i}?", (long + "good", short + " poor") if longer else (short + " good", long + "poor"))
        for i, (longer, _) in enumerate(rows)
    ]
    return planted.give_to(made, [[1.0 if right else -1.0, 0.0] for _, right in rows])


@undrawn
@pytest.mark.parametrize(
    ("rows", "value", "says"),
    [
        # annotators: half and half; the model: always the longer, always the shorter, always right
        ([(True, True), (False, False)] * 20, 0.5, "It likes length more than the annotators do."),
        ([(True, False), (False, True)] * 20, -0.5, "It likes length less than the annotators do."),
        ([(True, True), (False, True)] * 20, 0.0, "No sign that it likes length more, or less, than the annotators do."),
        # annotators: the longer in four of five; the model: always
        ([(True, True), (True, True), (True, True), (True, True), (False, False)] * 10, 0.2,
         "It likes length more than the annotators do."),
        # annotators: the shorter in four of five; the model: as often one as the other
        ([(False, True), (False, True), (False, False), (False, False), (True, True)] * 10, 0.4,
         "It likes length more than the annotators do."),
        ([(False, True), (False, True), (False, True), (False, False), (True, True)] * 10, 0.2,
         "It likes length more than the annotators do. But so would a model that ranks at random."),
    ],
)  # fmt: skip
def test_length(model, planted, rows, value, says):
    found = report(model, of_lengths(planted, rows))
    assert found.table.measured["longer preferred, minus judged"] == pytest.approx(value)
    assert reading(found, "longer preferred, minus judged") == says


@undrawn
def test_length_alone_is_the_baseline(model, planted):
    """The model that follows it is not better than it; the one that is right of others is."""
    follows = report(model, of_lengths(planted, [(True, True)] * 30 + [(False, False)] * 10))
    assert "Cannot be told from “the longer wins”." in reading(follows, "held-out accuracy")
    worse = report(model, of_lengths(planted, [(False, True)] * 24 + [(False, False)] * 16))
    assert "Worse than “the shorter wins”, which reads nothing." in reading(worse, "held-out accuracy")
    assert "the longer wins 0.000, the shorter 1.000" in worse.table.beside["held-out accuracy"]


def said_and_true(temperature, count=300):
    """Leads of a model that says `temperature` times what is true, where the better one came out by what is true."""
    rng = np.random.default_rng(0)
    true = rng.uniform(0.2, 2.5, count)
    return temperature * np.where(rng.random(count) < 1 / (1 + np.exp(-true)), true, -true)


@undrawn
@pytest.mark.parametrize(
    ("temperature", "says", "calibrated"),
    [
        (4.0, "Too sure: divide rewards by it", "Its probabilities are off by"),
        (0.25, "Not sure enough: divide rewards by it", "Its probabilities are off by"),
        (1.0, "No sign that it is too sure", "No more than chance makes"),
    ],
)
def test_calibration(model, planted, temperature, says, calibrated):
    held = planted.pairs(said_and_true(temperature))
    found = report(model, held)
    row = found.table.loc["best temperature"]
    rewards = planted.give(model.encode(held))
    assert row.measured == pytest.approx(fit_temperature(rewards, ranks_tensor(held)), abs=1e-3)
    assert row.measured == pytest.approx(temperature, rel=0.3) and row.low < row.measured < row.high
    assert row.reading.startswith(says)
    assert reading(found, "calibration error").startswith(calibrated)


@undrawn
def test_temperature_that_does_not_help_the_other_half_is_no_advice(model, planted, monkeypatch):
    monkeypatch.setattr(findings, "_halves", lambda held: (0.6, 0.7))
    found = report(model, planted.pairs(said_and_true(4.0)))
    assert reading(found, "best temperature").startswith("Too sure on these pairs; yet the temperature of half")
    assert "on half of the groups 0.600, and 0.700 at" in found.table.beside["NLL (nats)"]


@undrawn
def test_rewards_that_are_wrong_on_the_whole(model, planted):
    found = report(model, planted.pairs(leads(10, 30)))
    assert reading(found, "best temperature").startswith("There is none: these rewards are wrong on the whole")
    assert "half of the groups" not in found.table.beside["NLL (nats)"]
    barely = report(model, planted.pairs(leads(21, 19)))
    assert barely.table.high["best temperature"] == math.inf
    nearly = report(model, planted.pairs(leads(39, 1), "nearly"))  # many a resample has no wrong pair
    assert nearly.table.low["best temperature"] == 0 and nearly.table.high["best temperature"] < math.inf


@undrawn
@pytest.mark.parametrize(
    ("held", "says"),
    [
        (leads(40, 0), "Better than saying one half of every pair."),
        (leads(26, 14, 0.5), "Cannot be told from saying one half of every pair."),
        (leads(20, 20, 4.0), "Worse than saying one half of every pair"),
    ],
)
def test_loss(model, planted, held, says):
    found = report(model, planted.pairs(held))
    assert found.table.measured["NLL (nats)"] == pytest.approx(np.logaddexp(0, -np.array(held)).mean(), abs=1e-4)
    assert reading(found, "NLL (nats)").startswith(says)


@undrawn
@pytest.mark.parametrize(
    ("held", "share", "counts", "says"),
    [
        (leads(30, 10, 4.0), 0, "0 of 40 pairs; ranked wrong: 0", "It is so sure of no pair"),
        (leads(20, 5, 9.0) + leads(15, 0), 25 / 40, "25 of 40 pairs; ranked wrong: 5", "Wrong more often than the 1 %"),
        (leads(40, 0, 9.0) + leads(0, 9), 40 / 49, "40 of 49 pairs; ranked wrong: 0", "Wrong no more often than"),
        (leads(500, 0, 9.0), 1, "500 of 500 pairs; ranked wrong: 0", "Wrong less often than the 1 %"),
    ],
)
def test_saturated(model, planted, held, share, counts, says):
    found = report(model, planted.pairs(held))
    assert found.table.measured["pairs above 99 %"] == pytest.approx(share, abs=1e-4)
    assert found.table.beside["pairs above 99 %"] == counts
    assert reading(found, "pairs above 99 %").startswith(says)


@undrawn
def test_weakest_domain(model, planted):
    """One that is weaker than chance makes it, one that is not; and of fewer than 20 pairs none is named."""
    good = planted.pairs(leads(36, 4), "tea", domain="tea") + planted.pairs(leads(36, 4), "milk", domain="all")
    small = planted.pairs(leads(0, 19), "soup", domain="soup")
    found = report(model, good + planted.pairs(leads(18, 22), "beer", domain="beer") + small)
    assert found.table.measured["weakest domain"] == pytest.approx(18 / 40)
    assert found.table.beside["weakest domain"].startswith("beer, 40 pairs")
    assert reading(found, "weakest domain").startswith("Weaker than chance makes it: the weakest of 3 alike")
    found = report(model, good + planted.pairs(leads(34, 6), "rice", domain="rice"))
    assert reading(found, "weakest domain").startswith("No sign that it is weaker than the others")
    assert "weakest domain" not in report(model, good[:40] + small).table.index


@undrawn
def test_few_groups(model, planted):
    """One gives numbers without intervals; a few give intervals that are said to be too narrow."""
    held = [replace(p, group="one") for p in planted.pairs(leads(20, 10))]
    found = report(model, held, planted.pairs(leads(20, 10), "train"))
    for what in ("training minus held-out", "NLL (nats)", "best temperature"):
        assert np.isnan(found.table.low[what]) and np.isfinite(found.table.measured[what])
        assert reading(found, what) == "One group alone: no interval, and no verdict."
    assert "calibration error" not in found.table.index
    few = [replace(p, group=str(i % 6)) for i, p in enumerate(planted.pairs(leads(20, 10)))]
    assert "(Of fewer than 20 groups, such an interval is too narrow.)" in reading(report(model, few), "NLL (nats)")
    many = report(model, planted.pairs(leads(20, 10)))
    assert "too narrow" not in "".join(many.table.reading)


def test_one_pair_is_enough_to_run(model, planted):
    found = report(model, planted.pairs([1.0]))
    assert found.table.measured["held-out accuracy"] == 1 and len(found.figure.axes) == 6
    assert "<h1>" in found._body()


# --- the page -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def nasty(loaded):
    """A report on texts that are markup, mathematics and line breaks."""
    planted = Planted(loaded)
    made = planted.pairs(leads(20, 4), domain="<script>d</script>") + planted.pairs(leads(20, 1), "b", domain="$x_$")
    bad = Preference(
        "<script>alert('p')</script>", ("first\nsecond <img src=x>", "&amp; " + "answer " * 90 + "at last")
    )
    made += planted.give_to([bad], [[-9.0, 0.0]])
    found = report(loaded, made, planted.pairs(leads(9, 3), "t"), {"<script>e": planted.pairs(leads(9, 3), "e")})
    found.figure.set_dpi(20)  # the sooner drawn
    return found


def test_markup_of_the_data_is_text(nasty):
    body = nasty._body()
    assert body.count("<img") == 1 and "<script" not in body
    assert "&lt;script&gt;alert(" in body and "&lt;script&gt;e accuracy" in body and "&lt;script&gt;d" in body
    assert "first\nsecond &lt;img src=x&gt;" in body and "&amp;amp; answer answer" in body
    assert "at last" not in body and nasty.surest_mistakes.rejected[0].endswith("at last")  # cut on the page alone


def test_in_a_notebook(nasty):
    bundle = nasty._repr_mimebundle_()
    assert bundle["text/plain"] == "<report on 46 held-out preferences>" and set(bundle) == {"text/plain", "text/html"}
    assert re.search(r'<img src="data:image/png;base64,iVBOR[^"]+" alt="[^"]+">', bundle["text/html"])
    assert all(
        f"<li>{start}" in bundle["text/html"] for start in ("Accuracy: training 0.75", "By domain: ", "Calibration")
    )
    assert "0.750</td>" in bundle["text/html"]


def test_saved_page_stands_alone(nasty, tmp_path):
    path = nasty.save(tmp_path / "report.html")
    page = path.read_text("utf-8")
    assert page.startswith("<!DOCTYPE html>") and '<html lang="en">' in page and '<meta charset="utf-8">' in page
    assert 'name="viewport"' in page and "<title>Report on " in page and page.rstrip().endswith("</html>")
    assert not re.search(r"<script|<link|@import|https?:|url\(", page)
    assert all(source.startswith("data:") for source in re.findall(r'src="([^"]*)', page))
    assert nasty.save(str(path)) == path and [p.name for p in tmp_path.glob("*report*")] == ["report.html"]


def test_saved_whole_or_not_at_all(nasty, tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="there is no folder .*nowhere.* make it"):
        nasty.save(tmp_path / "nowhere" / "report.html")
    with pytest.raises(IsADirectoryError, match=r"is a folder: name the file, such as .*report\.html"):
        nasty.save(tmp_path)
    (tmp_path / "report.html").write_text("before")

    def full(*_):
        raise OSError("no space")

    monkeypatch.setattr("os.replace", full)  # at the last moment
    with pytest.raises(OSError, match="no space"):
        nasty.save(tmp_path / "report.html")
    assert (tmp_path / "report.html").read_bytes() == b"before"
    assert [p.name for p in tmp_path.glob("*report*")] == ["report.html"]


def test_panels(nasty, model, planted):
    titles = [axes.get_title(loc="left") for axes in nasty.figure.axes]
    assert titles == [
        "Accuracy", "Held-out accuracy by domain", "Calibration", "Held-out differences",
        "Differences of every set, cumulated", "Held-out accuracy: the better one is …",
    ]  # fmt: skip
    labels = [label.get_text() for label in nasty.figure.axes[1].get_yticklabels()]
    assert labels == ["(none) (1)", "<script>d</script> (24)", r"\$x_\$ (21)"]  # the weakest first
    alone = report(model, planted.pairs([0.1 * i for i in range(1, 31)]), ceiling=0.8)
    titles = [axes.get_title(loc="left") for axes in alone.figure.axes]
    assert titles[1] == "Held-out accuracy by how sure the model is" and titles[4] == "Rewards of held-out pairs"
    labels = [label.get_text() for label in alone.figure.axes[1].get_yticklabels()]
    assert alone.captions[4] == "Rewards: the chosen ones have 1.55 on average, the rejected 0.00."
    assert len(labels) == 4 and labels[0].startswith("52.5% to ") and labels[0].endswith(" sure (8)")
    assert "ceiling" in alone.figure.axes[0].get_legend_handles_labels()[1]
    assert "ceiling" not in nasty.figure.axes[0].get_legend_handles_labels()[1]


def test_calibration_is_drawn_before_and_after(model, planted):
    """Of a model that is too sure, the temperature brings the probabilities together; what came true stays."""
    found = report(model, planted.pairs(said_and_true(4.0, 100)))
    before, after = (curve.get_xydata() for curve, *_ in found.figure.axes[2].containers)
    assert np.allclose(before[:, 1], after[:, 1])
    assert (np.abs(after[:, 0] - 0.5) < np.abs(before[:, 0] - 0.5)).all()
    one = found.table.measured["best temperature"]
    assert found.figure.axes[2].get_legend_handles_labels()[1][1:] == ["as it is", f"divided by {one:.2g}"]


def test_accuracy_by_length(model, planted):
    """The classes are of the better one's length less the other's, and the same on either side."""
    made = [
        Preference(f"l{i}?", ("a" * (200 + gap), "b" * 200)) for i, gap in enumerate((-90, -50, -50, 0, 5, -5, 50, 90))
    ]
    planted.give_to(made, [[1.0 if i < 5 else -1.0, 0.0] for i in range(8)])
    found = report(model, made)
    assert found.captions[5].startswith(
        "Length in characters, of the better one: over 50 shorter 1.00, 20 to 50 shorter 1.00, within 20 characters 0.67, "
        "20 to 50 longer 0.00, over 50 longer 0.00."
    ), found.captions[5]


# --- the drawing functions ----------------------------------------------------------------------------------


def test_reliability_is_drawn_beside_the_diagonal():
    ranks = torch.tensor([[0, 1]] * 60)
    rewards = torch.stack([torch.from_numpy(said_and_true(3.0, 60)), torch.zeros(60)], 1)
    tables = {"before": reliability(rewards, ranks), "after": reliability(rewards / 3, ranks)}
    figure, (axes,) = plots.new_figure()
    plots.draw_reliability(axes, tables)
    assert axes.get_legend_handles_labels()[1] == ["calibrated", "before", "after"]
    assert axes.lines[0].get_xydata().tolist() == [[0, 0], [1, 1]]
    for (curve, *_), table in zip(axes.containers, tables.values(), strict=True):
        assert np.allclose(curve.get_xydata(), table[["said", "found"]])
    figure.savefig(io.BytesIO(), format="png")


def test_differences_are_cut_at_zero():
    _, (axes,) = plots.new_figure()
    plots.draw_differences(axes, np.array([-1.3, -0.01, 0.0, 0.01, 2.0]), "")
    assert set(axes.get_legend_handles_labels()[1]) == {"right: 2", "wrong: 2", "equal: 1"}
    right, wrong = axes.containers
    assert sum(bar.get_height() for bar in right if bar.get_x() >= -1e-9) == 3
    assert sum(bar.get_height() for bar in wrong if bar.get_x() < -1e-9) == 2
    plots.draw_differences(axes, np.zeros(3), "")  # of a model that gives all alike


def test_cumulated_differences_read_the_error_at_zero():
    _, (axes,) = plots.new_figure()
    many = {f"set {i}": np.array([-1.0, 1.0, 2.0, 3.0]) for i in range(7)}
    plots.draw_cumulative(axes, many, "")
    curve = axes.lines[0].get_xydata()
    assert curve[curve[:, 0] < 0][-1, 1] == 0.25
    looks = {(line.get_color(), str(line._dash_pattern)) for line in axes.lines[:7]}
    assert len(looks) == 7 and len(axes.get_legend_handles_labels()[1]) == 7


def test_shares_are_labelled_with_their_pairs():
    _, (axes,) = plots.new_figure()
    table = pd.DataFrame(
        {"pairs": [7, 8], "accuracy": [0.6, 0.7], "low": [0.5, 0.6], "high": [0.8, 0.9]},
        index=["a\nname $of$ more than twenty-six letters", "b"],
    )
    plots.draw_shares(axes, table, "")
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == [r"a name \$of\$ more than twe… (7)", "b (8)"]
    assert axes.get_legend_handles_labels()[1] == ["chance", "the model"]


# --- wrong arguments ----------------------------------------------------------------------------------------

PAIR = Preference("Tea?", ("Yes.", "No."))
TIE = replace(PAIR, ranks=(0, 0))


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"model": "a model"}, TypeError, "model is a RewardModel: got str"),
        ({"held_out": []}, ValueError, "report wants preferences to measure on, and held-out has none"),
        ({"held_out": "tea"}, TypeError, "held-out: preferences come in a list"),
        ({"held_out": [PAIR, "tea"]}, TypeError, "held-out: preference 1 is a str"),
        ({"train": None}, TypeError, "training: preferences come in a list"),
        ({"train": [3]}, TypeError, "training: preference 0 is a int"),
        ({"elsewhere": [PAIR]}, TypeError, "elsewhere is a dict of preferences by name: got list"),
        ({"elsewhere": {"poems": PAIR}}, TypeError, "poems: preferences come in a list"),
        ({"elsewhere": {"poems": []}}, ValueError, "and poems has none"),
        ({"elsewhere": {"training": [PAIR]}}, ValueError, "other than held-out, training and all: got 'training'"),
        ({"elsewhere": {3: [PAIR]}}, ValueError, "a set elsewhere has a name.*got 3"),
        ({"elsewhere": {" ": [PAIR]}}, ValueError, "a set elsewhere has a name"),
        ({"ceiling": 0.4}, ValueError, "ceiling is an accuracy from 0.5 to 1, .*got 0.4"),
        ({"ceiling": True}, ValueError, "ceiling is an accuracy from 0.5 to 1"),
        ({"ceiling": 85}, ValueError, "ceiling is an accuracy from 0.5 to 1"),
        ({"ceiling": "0.8"}, ValueError, "ceiling is an accuracy from 0.5 to 1"),
        ({"ceiling": float("nan")}, ValueError, "ceiling is an accuracy from 0.5 to 1"),
        ({"held_out": [TIE]}, ValueError, "no pair of the held-out preferences was told apart"),
        ({"elsewhere": {"poems": [TIE]}}, ValueError, "no pair of the poems preferences was told apart"),
        ({"train": [replace(PAIR, prompt="</s>")]}, PreferenceError, "training preference 0: .* special token"),
    ],
)
def test_wrong_arguments(model, arguments, error, says):
    with pytest.raises(error, match=says):
        report(**{"model": model, "held_out": [PAIR]} | arguments)


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_reward_that_is_not_finite(model, planted, broken):
    """The first one is named, by the index that the caller knows, and where to look is said."""
    held = planted.pairs([1.0, 1.0, broken, 1.0, broken])
    with pytest.raises(
        ValueError, match=r"held-out preference 2 \('held 2\?'\) has a reward that is not .*1 other.*rmkit\.diagnose"
    ):
        report(model, held)
    with pytest.raises(ValueError, match=r"training preference 2 "):
        report(model, planted.pairs([1.0]), held)
