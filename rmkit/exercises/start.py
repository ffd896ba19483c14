"""The exercise of notebook 00."""

import torch

from rmkit.exercises import Exercise


def preference_probability(first, second):
    return torch.sigmoid(torch.as_tensor(first - second))


EXERCISES = {
    "preference_probability": Exercise(
        reference=preference_probability,
        cases=tuple((torch.tensor(a), torch.tensor(b)) for a, b in [(2.0, 2.0), (3.0, 1.0), (-1.0, 2.0)]),
        mistakes={
            "the two are swapped: the probability must rise with the first reward.": lambda a, b: torch.sigmoid(b - a),
            "a share of the sum is not a probability when rewards can be negative, and it changes when a constant is "
            "added to both.": lambda a, b: a / (a + b),
            "this looks at one reward only: the difference matters.": lambda a, b: torch.sigmoid(a),
            "this is the loss, the negative logarithm of the probability.": lambda a, b: -torch.log(torch.sigmoid(a - b)),
            "this is the difference itself: a probability lies between 0 and 1.": lambda a, b: a - b,
        },
        hint="Which function did the equation above apply to the difference? torch has it under its usual name.",
        reason="Bradley and Terry's model: the log-odds of the first being preferred are the difference of the rewards.",
    ),
}
