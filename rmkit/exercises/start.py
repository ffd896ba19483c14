"""The exercise of notebook 00."""

import torch

from rmkit.exercises import Exercise


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
        hint="Which function did the equation above apply to the difference? torch has it under its usual name.",
        reason="Bradley and Terry's model: the log-odds of the first being preferred are the difference of the rewards.",
    ),
}
