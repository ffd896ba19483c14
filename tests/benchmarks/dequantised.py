"""How far the dequantised SmolLM2 is from the original: `python -m tests.benchmarks.dequantised [original]`.

The original is a hub id or a local folder; the hub must answer for the default. Printed, over the texts of
json_vs_text: nats per token of each, the Kullback–Leibler divergence of their next-token predictions, and the
cosine of the hidden states that a reward model reads.
"""

import sys

import torch
import torch.nn.functional as F

from rmkit import Backbone, BackboneUnavailable, load_backbone, load_preferences

ORIGINAL = "HuggingFaceTB/SmolLM2-135M-Instruct"
TEXTS = 32


@torch.no_grad()
def compare(ours: Backbone, original: Backbone, texts: list[str]) -> dict[str, float]:
    """Means over all tokens (nats, nats, nats) and over the texts' last tokens (cosine), one text at a time."""
    sums, tokens, cosines = torch.zeros(3, dtype=torch.double), 0, []
    for text in texts:
        ids = ours.tokenizer.encode(text, return_tensors="pt", add_special_tokens=False)
        runs = [b.model(ids.to(b.device), output_hidden_states=True) for b in (ours, original)]
        p, q = (F.log_softmax(run.logits[0, :-1].double().cpu(), -1) for run in runs)  # (T − 1, vocabulary)
        targets = ids[0, 1:, None]
        nats = [-logs.gather(1, targets).sum() for logs in (p, q)]
        sums += torch.stack([*nats, F.kl_div(p, q, log_target=True, reduction="sum")])
        tokens += len(targets)
        last = [run.hidden_states[-1][0, -1].float().cpu() for run in runs]
        cosines.append(F.cosine_similarity(*last, dim=0).item())
    names = ("nats per token, dequantised", "nats per token, original", "KL(original ‖ dequantised), nats per token")
    return dict(zip(names, (sums / tokens).tolist(), strict=True)) | {
        "cosine of the last hidden states": sum(cosines) / len(cosines)
    }


def main(original: str = ORIGINAL) -> int:
    """Print the comparison; 1 where the original is not to be had."""
    texts = [p.rejected for p in load_preferences("json_vs_text")[:TEXTS]]
    try:
        figures = compare(load_backbone("smollm2-135m"), load_backbone(original), texts)
    except BackboneUnavailable as error:
        print(error, file=sys.stderr)
        return 1
    for name, value in figures.items():
        print(f"{name}: {value:.4f}")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
