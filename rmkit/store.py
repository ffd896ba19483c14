"""`python -m rmkit.store [clear]`: say how much of what frozen layers gave is kept, and where; or delete it."""

import shutil
import sys

from rmkit.trunk import entries, size_cap, trunk_folder


def main(arguments: list[str]) -> int:
    """Say what the store holds; with `clear`, delete it; 2 for anything else."""
    if arguments not in ([], ["clear"]):
        print("usage: python -m rmkit.store [clear]", file=sys.stderr)
        return 2
    before = entries()
    if arguments:
        shutil.rmtree(trunk_folder(), ignore_errors=True)
        print(f"{trunk_folder()}: {len(before) - len(entries())} of {len(before)} entries deleted")
    else:
        size = sum(size for _, _, size in before)
        print(f"{trunk_folder()}: {len(before)} entries, {size / 1e6:.1f} MB of at most {size_cap() / 1e6:.0f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
