"""The exercise of notebook 00."""

import torch

from rmkit.exercises import Exercise
from rmkit.quizzes import Question


def preference_probability(first, second):
    return torch.sigmoid(first - second)


EXERCISES = {
    "preference_probability": Exercise(
        reference=preference_probability,
        cases=tuple((torch.tensor(a), torch.tensor(b)) for a, b in [(2.0, 2.0), (3.0, 1.0), (-1.0, 2.0)]),
        mistakes={
            "the two are swapped: the probability must rise with the first reward.": lambda a, b: torch.sigmoid(b - a),
            "a share of the sum is no probability where rewards can be negative, and it changes when a constant is "
            "added to both.": lambda a, b: a / (a + b),
            "a share of two sigmoids changes when a constant is added to both rewards: take the sigmoid of their "
            "difference.": lambda a, b: torch.sigmoid(a) / (torch.sigmoid(a) + torch.sigmoid(b)),
            "this looks at one reward only: the difference matters.": lambda a, b: torch.sigmoid(a),
            "this is the loss, the negative logarithm of the probability.": lambda a, b: (
                -torch.log(torch.sigmoid(a - b))
            ),
            "this is the logarithm of the probability.": lambda a, b: torch.log(torch.sigmoid(a - b)),
            "these are the odds: a probability p has odds p / (1 − p).": lambda a, b: torch.exp(a - b),
            "this is the difference itself: a probability lies between 0 and 1.": lambda a, b: a - b,
            "this says which is higher, not how likely it is to be preferred.": lambda a, b: (a > b).float(),
        },
        hints=(
            "Which function did the equation above apply to the difference? torch has it under its usual name.",
            "What goes in is one number, the first reward minus the second.",
            "torch.sigmoid of that difference.",
        ),
        reason="Bradley and Terry's model: the log-odds of the first being preferred are the difference of the rewards.",
    ),
}


QUIZ = [
    Question(
        "A reward model gives answer A a reward of 3.1. Is A good?",
        right=(
            "It depends on the rewards of other answers to the same prompt.",
            "A reward has a meaning only against another one for the same prompt.",
        ),
        wrong=(
            (
                "Yes, it is above zero.",
                "Zero is not special: adding any constant to all rewards changes no comparison, and training never sees "
                "the constant.",
            ),
            (
                "It depends on the rewards of answers to other prompts.",
                "Training compares answers to one prompt; every prompt may have an offset of its own.",
            ),
        ),
    ),
    Question(
        "Where is the reward read?",
        right=(
            "At the last token of the answer.",
            "A language model reads from left to right: this is the first position that has seen the whole prompt and "
            "the whole answer.",
        ),
        wrong=(
            (
                "At the end of the prompt.",
                "The answer has not been read there, and a model that reads from left to right cannot look ahead.",
            ),
            (
                "At the last position of the row.",
                "Only when there is no padding on the right. Reading there is the most reported reward-model bug; lesson "
                "01 plants it.",
            ),
        ),
    ),
    Question(
        "Two answers to one prompt have the rewards 4 and 3. What is the probability that the first is preferred?",
        right=("σ(1), about 0.73.", "Bradley and Terry: the sigmoid of the difference."),
        wrong=(
            (
                "4 / 7, about 0.57.",
                "A share of the sum would change when a constant is added to both, and could be negative.",
            ),
            (
                "1: the first has the higher reward.",
                "A higher reward is more likely to be preferred, not certain to be.",
            ),
        ),
    ),
]
