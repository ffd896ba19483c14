"""Protects: what a lesson says to its learner: guesses come back, mistakes are named, sliders draw."""

import base64
import html
import importlib
import pkgutil
import random
import re

import datasets
import huggingface_hub
import ipywidgets
import numpy as np
import pytest
import torch
import torch.nn.functional as F

import rmkit.exercises
from rmkit import Playground, RewardModel, SliderFigure, claim, outcome, predict, predictions, quiz, start
from rmkit.exercises import check, exercise, hint, solution
from rmkit.quizzes import Question, Quiz
from tests import exercise_table

# --- guesses and claims -------------------------------------------------------------------------------------


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("RMKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_guess_comes_back_beside_what_was_measured(cache, capsys):
    predict("loss", "How high is it?", 0.5)
    predict("accuracy", "How often is it right?", 1)
    predict("loss", "How high is it?", 0.6)
    assert capsys.readouterr().out.endswith("? How high is it?\n  Noted: 0.6.\n")
    outcome("loss", 0.693147)
    outcome("accuracy", 0.98)
    outcome("other", 3)
    assert capsys.readouterr().out.splitlines() == [
        "You guessed 0.6; measured: 0.693.",
        "You guessed 1; measured: 0.98.",
        "You made no guess; measured: 3.",
    ]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "No guess yet"),
        ({"guess": "high"}, "got 'high'"),
        ({"guess": True}, "got True"),
        ({"guess": float("nan")}, "got nan"),
        ({"probability": 1.5}, "from 0 to 1: got 1.5"),
        ({"probability": "sure"}, "got 'sure'"),
    ],
)
def test_what_is_no_guess_is_not_kept(cache, capsys, given, said):
    predict("loss", "How high is it?", **given)
    assert said in capsys.readouterr().out
    outcome("loss", 1)
    assert capsys.readouterr().out == "You made no guess; measured: 1.\n"
    assert predictions().empty


def test_probabilities_are_scored(cache, capsys):
    """Brier: 0.9 on what is so costs 0.01, 0.8 on what is not 0.64; what has no answer yet, or is a number, counts apart."""
    predict("a", "Is it?", probability=0.9)
    predict("b", "Is that?", probability=0.8)
    predict("c", "Will it be?", probability=0.5)
    predict("d", "How many?", guess=20)
    capsys.readouterr()
    outcome("a", True)
    outcome("b", False)
    outcome("d", 5)
    outcome("e", True)
    assert capsys.readouterr().out.splitlines() == [
        "You said 90%; the answer is yes.",
        "You said 80%; the answer is no.",
        "You guessed 20; measured: 5.",
        "You made no guess; measured: yes.",
    ]
    table = predictions()
    assert capsys.readouterr().out == "Your Brier score: 0.33 on 2 questions; saying 50 % to all of them gets 0.25.\n"
    assert table["question"].tolist() == ["Is it?", "Is that?", "Will it be?", "How many?"]
    assert table["Brier score"][:2].tolist() == pytest.approx([0.01, 0.64])
    assert table["Brier score"].isna().tolist() == [False, False, True, True]
    assert table["times off"].tolist()[3] == 4 and table["times off"].isna().sum() == 3


def test_a_new_guess_replaces_the_old_one_and_its_outcome(cache, capsys):
    predict("a", "Is it?", probability=0.9)
    outcome("a", True)
    predict("a", "Is it?", probability=0.6)
    assert np.isnan(predictions()["measured"][0])


@pytest.mark.parametrize(
    "content", [b"", b'{"loss": 0.', b"[]", b"3", b"\xff", b'{"loss": 0.5}', b'{"loss": {"guess": 1}}'], ids=ascii
)
def test_corrupt_file_of_guesses_is_no_obstacle(cache, capsys, content):
    cache.mkdir()
    (cache / "predictions.json").write_bytes(content)
    outcome("loss", 1)
    assert capsys.readouterr().out == "You made no guess; measured: 1.\n"
    predict("loss", "How high is it?", 2)
    outcome("loss", 1)
    assert capsys.readouterr().out.endswith("You guessed 2; measured: 1.\n")


@pytest.mark.parametrize("holds", [True, np.bool_(True), torch.tensor(True), 1], ids=repr)
def test_claim_prints_its_verdict(capsys, holds):
    """The same characters whatever kind of truth it is given: the stored output is compared."""
    claim("validation accuracy at least 0.95", holds)
    assert capsys.readouterr().out == "validation accuracy at least 0.95: True\n"


# --- start --------------------------------------------------------------------------------------------------


def test_start_says_one_line_and_silences_the_rest(monkeypatch, tiny_folder, capfd):
    monkeypatch.setenv("RMKIT_BACKBONE", str(tiny_folder))
    huggingface_hub.utils.enable_progress_bars()
    datasets.enable_progress_bars()
    backbone = start()
    captured = capfd.readouterr()
    assert captured.out == f"{backbone}\n" and captured.out.count("\n") == 1
    assert captured.err == ""
    assert huggingface_hub.utils.are_progress_bars_disabled()
    assert not datasets.is_progress_bar_enabled()


def test_start_seeds_every_source_of_chance(monkeypatch, tiny_folder):
    monkeypatch.setenv("RMKIT_BACKBONE", str(tiny_folder))

    def drawn(seed):
        start(seed)
        return [random.random(), np.random.rand(), torch.rand(1).item()]

    first, again, other = drawn(3), drawn(3), drawn(4)
    assert first == again
    assert all(a != b for a, b in zip(first, other, strict=True))


# --- exercises ----------------------------------------------------------------------------------------------

FILES = [importlib.import_module(f"rmkit.exercises.{m.name}") for m in pkgutil.iter_modules(rmkit.exercises.__path__)]
KNOWN = {name: known for file in FILES for name, known in file.EXERCISES.items()}
MISTAKES = [(name, message) for name, known in KNOWN.items() for message in known.mistakes]
each_exercise = pytest.mark.parametrize("name", KNOWN)


def named(name, function):
    function.__name__ = name
    return function


@each_exercise
def test_reference_is_right_and_the_learners_is_used(name, capsys):
    def learners(*arguments):
        return KNOWN[name].reference(*arguments)

    assert exercise(named(name, learners)) is learners
    assert capsys.readouterr().out == f"✓ {name}: right. Yours is used from here on.\n"


@each_exercise
def test_blank_stub_falls_back_to_the_reference(name, capsys):
    def stub(*arguments):
        raise NotImplementedError

    assert exercise(named(name, stub)) is KNOWN[name].reference
    assert capsys.readouterr().out.startswith(f"○ {name}: not attempted yet")


@pytest.mark.parametrize(("name", "message"), MISTAKES)
def test_mistake_is_recognised_by_its_own_message(name, message):
    """Not as right, and not as another mistake that gives the same numbers on the cases."""
    assert check(KNOWN[name], KNOWN[name].mistakes[message]) == message


@each_exercise
def test_learners_exception_becomes_a_sentence(name, capsys):
    def broken(*arguments):
        return [][1]

    assert exercise(named(name, broken)) is KNOWN[name].reference
    said = capsys.readouterr().out
    assert said.startswith(f"✗ {name}: it raised IndexError (list index out of range) for ")
    assert said.endswith(" The reference goes on.\n")


@pytest.mark.parametrize("answer", [None, "0.5", 12345.0, torch.zeros(7), [torch.zeros(2)], print], ids=ascii)
@each_exercise
def test_any_other_answer_gets_a_sentence(name, answer):
    """Whatever the learner returns: one line of ours, never a traceback."""
    said = check(KNOWN[name], lambda *arguments: answer)
    assert said and "\n" not in said


@pytest.mark.parametrize(
    ("name", "function", "said"),
    [
        ("preference_probability", lambda a, b: 2.0, "for 2, 2 it should give 0.5, and gave 2."),
        ("training_bytes", lambda n, t: None, "it returned nothing: is the `return` missing?"),
        ("bradley_terry_loss", lambda c, r: -F.logsigmoid(c - r).mean().item(), "no gradient can flow through it"),
    ],
)
def test_wrong_answer_is_told_what_is_wrong(name, function, said):
    assert check(KNOWN[name], function).startswith(said)


def test_cases_survive_a_function_that_changes_its_arguments():
    """Else one attempt in place would spoil the check for the rest of the session."""
    known = KNOWN["last_token_positions"]
    before = [case[0].clone() for case in known.cases]
    assert check(known, lambda mask: mask.cumsum_(1).amax(1) - 1) is None
    assert all(torch.equal(case[0], expected) for case, expected in zip(known.cases, before, strict=True))


@each_exercise
def test_solution_can_be_used_as_shown(name, capsys):
    """The source that is printed, pasted into a notebook, is right."""
    solution(name)
    source, _, reason = capsys.readouterr().out.rpartition("\n\n")
    scope = {"torch": torch, "F": F} | {other: KNOWN[other].reference for other in KNOWN if other != name}
    exec(source, scope)
    assert check(KNOWN[name], scope[name]) is None
    assert reason.strip() == KNOWN[name].reason


@each_exercise
def test_hints_come_in_steps_and_begin_again(name, capsys):
    hints = KNOWN[name].hints
    assert len(hints) >= 2 and len(set(hints)) == len(hints)
    for _ in range(len(hints) + 1):
        hint(name)
    said = capsys.readouterr().out.splitlines()
    numbered = [f"hint {i} of {len(hints)}: {text}" for i, text in enumerate(hints, start=1)]
    start = numbered.index(said[0])  # another test may have asked before
    assert said == [numbered[(start + i) % len(hints)] for i in range(len(hints) + 1)]


@each_exercise
def test_an_exercise_knows_three_wrong_answers(name):
    assert len(KNOWN[name].mistakes) >= 3


def test_table_of_exercises_is_up_to_date():
    """`python -m tests.exercise_table` writes it; an exercise that no notebook asks for is missing there."""
    page = exercise_table.table()
    assert exercise_table.FILE.read_text(encoding="utf-8") == page
    assert [name for name in KNOWN if f"`{name}`" not in page] == []


def test_unknown_name_says_what_there_is():
    with pytest.raises(
        KeyError, match="no exercise is called 'loss': keep the name of the function.*bradley_terry_loss"
    ):
        exercise(named("loss", lambda: None))


# --- sliders ------------------------------------------------------------------------------------------------


@pytest.fixture
def slider_figure():
    """A bar whose height is a slider's, and what was drawn so far."""
    drawn = []

    def draw(figure, height, colour):
        drawn.append((height, colour))
        figure.subplots().bar([0, 1], [9, height], color=colour)

    return SliderFigure(draw, (3, 2), height=ipywidgets.IntSlider(3, 0, 9), colour=["red", "green", "blue"]), drawn


def test_slider_that_moves_draws_anew(slider_figure):
    figure, drawn = slider_figure
    assert drawn == [(3, "green")], "a list begins in its middle"
    first = bytes(figure.image.value)
    figure.sliders["height"].value = 4
    second = bytes(figure.image.value)
    figure.sliders["colour"].value = "blue"
    assert drawn == [(3, "green"), (4, "green"), (4, "blue")]
    assert len({first, second, bytes(figure.image.value)}) == 3
    figure.sliders["colour"].value, figure.sliders["height"].value = "green", 3
    assert figure.image.value == first, "the same values draw another picture"


def test_figure_shows_where_nothing_runs(slider_figure):
    """A page that knows no widgets shows the picture; the text is the same wherever the sliders stand."""
    figure, _ = slider_figure
    bundle = figure._repr_mimebundle_()
    assert base64.b64decode(bundle["image/png"]) == bytes(figure.image.value)
    assert bytes(figure.image.value).startswith(b"\x89PNG")
    assert bundle["text/plain"] == "<figure with sliders: height, colour>"
    assert bundle["application/vnd.jupyter.widget-view+json"]["model_id"] == figure.box.model_id
    figure.sliders["height"].value = 9
    moved = figure._repr_mimebundle_()
    assert moved["text/plain"] == bundle["text/plain"] and moved["image/png"] != bundle["image/png"]


def test_sliders_are_named_and_above_the_figure(slider_figure):
    figure, _ = slider_figure
    assert [slider.description for slider in figure.sliders.values()] == ["height", "colour"]
    assert figure.box.children == (*figure.sliders.values(), figure.image)


# --- quizzes ------------------------------------------------------------------------------------------------

QUIZZES = {name: lesson.QUIZ for name, lesson in rmkit.exercises.lessons().items()}


@pytest.mark.parametrize("name", QUIZZES)
def test_every_choice_is_explained_on_a_page_that_does_not_run(name):
    page = quiz(name)._repr_mimebundle_()["text/html"]
    for question in QUIZZES[name]:
        assert html.escape(question.text) in page
        for text, why in (question.right, *question.wrong):
            mark = "Right. " if (text, why) == question.right else "No. "
            assert f"<summary>{html.escape(text)}</summary>{mark}{html.escape(why)}<" in page
        assert len({text for text, _ in (question.right, *question.wrong)}) == 1 + len(question.wrong) >= 3


def test_right_choices_are_at_every_place_about_equally_often():
    """Over all lessons, and the same on every machine; a reader who always takes the first gets no more than chance."""
    places = []
    for name, questions in QUIZZES.items():
        arranged = quiz(name).choices
        assert arranged == quiz(name).choices
        places += [choices.index(q.right) for choices, q in zip(arranged, questions, strict=True)]
    counts = np.bincount(places, minlength=3)
    assert counts.max() - counts.min() <= 2, counts
    many = Quiz("many", [Question(str(i), ("r", ""), (("a", ""), ("b", ""))) for i in range(60)])
    assert np.bincount([c.index(("r", "")) for c in many.choices]).tolist() == [20, 20, 20]
    assert quiz("03").choices != Quiz("other", QUIZZES["03"]).choices


def test_a_click_gets_its_explanation():
    questions = [
        Question("Is 1 < 2?", ("Yes, <b>it</b> is.", "Right & proper."), (("No.", "Count <again>."), ("Ω", "?")))
    ]
    shown = Quiz("click", questions)
    heading, options, verdict = shown.box.children
    assert "1 &lt; 2" in heading.value and verdict.value == "" and options.value is None
    options.value = "No."
    assert verdict.value == "<p>✗ Count &lt;again&gt;.</p>"
    options.value = "Yes, <b>it</b> is."
    assert verdict.value == "<p>✓ Right. Right &amp; proper.</p>"
    assert "<b>it</b>" not in shown._repr_mimebundle_()["text/html"]


def test_quiz_that_is_not_there():
    with pytest.raises(KeyError, match="there is no quiz '99': 00, 01"):
        quiz("99")


# --- the playground -----------------------------------------------------------------------------------------

TYPED = '<script>alert(1)</script> <img src=x onerror=alert(2)> $\\LaTeX$ & "quotes"'


@pytest.fixture
def playground(tiny):
    torch.manual_seed(0)
    model = RewardModel(tiny, trainable="head")
    return Playground(model, "What is tea?", "A drink made of leaves.", "No idea!")


def test_playground_shows_what_the_model_scores(playground):
    first, second = playground.model.score("What is tea?", ["A drink made of leaves.", "No idea!"]).tolist()
    shown = playground.result.value
    assert f"<b>first: {first:+.2f}</b>" in shown and f"<b>second: {second:+.2f}</b>" in shown
    assert f"P(first preferred) = {1 / (1 + np.exp(second - first)):.3f}" in shown
    page = playground._repr_mimebundle_()
    assert shown in page["text/html"] and "A drink made of leaves." in page["text/html"]
    assert page["application/vnd.jupyter.widget-view+json"]["model_id"] == playground.box.model_id


def test_playground_scores_anew_and_says_what_is_missing(playground):
    before = playground.result.value
    playground.fields["second"].value = "Tea is a drink."
    after = playground.result.value
    assert after != before and "<b>second: " in after
    playground.fields["first"].value = " "
    assert playground.result.value == "<p>Type a prompt and two answers.</p>"
    playground.fields["first"].value = "Say </s>."
    assert "special token" in playground.result.value and "</s>" not in playground.result.value


def test_playground_shows_markup_as_text(playground):
    """In every field, in the widget and on the page: no tag of the user's, and no formula outside of code."""
    for field in playground.fields.values():
        field.value = TYPED
    page = playground._repr_mimebundle_()["text/html"]
    for shown in (playground.result.value, page):
        assert "<script" not in shown and "<img" not in shown
        assert "$" not in re.sub(r"<code[^>]*>.*?</code>", "", shown)
    assert html.escape(TYPED) in page


def test_token_rewards_are_those_of_the_text_so_far(tiny):
    """The last is the reward; each is what the head makes of the state there; and mean pooling has none."""
    torch.manual_seed(0)
    model = RewardModel(tiny, trainable="head", dropout=0.5).train()
    grown = model.token_rewards("What is tea?", "A drink made of leaves.")
    assert model.training
    assert "".join(text for text, _ in grown).startswith("A") or grown[0][0].strip() == "A"
    assert grown[-1][1] == pytest.approx(model.score("What is tea?", ["A drink made of leaves."]).item(), abs=1e-5)
    shorter = model.token_rewards("What is tea?", "A drink")
    same = len(shorter) - 1  # all but the end of turn
    assert [r for _, r in shorter[:same]] == pytest.approx([r for _, r in grown[:same]], abs=1e-5)
    with pytest.raises(ValueError, match="takes the mean of all"):
        RewardModel(tiny, trainable="head", pooling="mean").token_rewards("Tea?", "Yes.")
