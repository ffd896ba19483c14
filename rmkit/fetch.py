"""`python -m rmkit.fetch [name …]`: bring backbones onto this machine and check them, so that lessons run offline."""

import sys

from rmkit.backbones import load_backbone
from rmkit.smollm2 import SMOLLM2, BackboneUnavailable


def main(names: list[str]) -> int:
    """Fetch and load every named backbone (SmolLM2 where none is named); 1 where one is not to be had."""
    for name in names or [SMOLLM2]:
        try:
            backbone = load_backbone(name)
        except (BackboneUnavailable, ValueError) as error:
            print(f"{name}: {error}", file=sys.stderr)
            return 1
        print(f"{backbone.name}: ready, {backbone.revision}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
