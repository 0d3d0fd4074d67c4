"""torchrun with the exit code of the run: that of its first process that failed, where torchrun itself ends with 1.

    python lit_gpt/utils/torchrun.py --standalone --nproc_per_node 8 pretrain.py --depth 8 --train_name mup

So a study (ladder.py) knows of a run on several GPUs, too, that its options are wrong, which another try does not mend,
or that it diverged. A signal that ends torchrun itself leaves 1: what the processes made of it is not known here.
"""

from __future__ import annotations

import sys

from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main


def run() -> int:
    """torchrun by sys.argv; the exit code. A process that signal n ended gives 128 + n, as in a shell."""
    try:
        main()
    except ChildFailedError as failed:
        print(failed, file=sys.stderr)
        code = failed.get_first_failure()[1].exitcode
        return code if code > 0 else 128 - code
    return 0


if __name__ == "__main__":
    sys.exit(run())
