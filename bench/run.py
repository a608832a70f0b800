"""Run a benchmark: `python -m bench.run NAME`; without a name it lists them, and each has --help."""

from __future__ import annotations

import argparse
from functools import partial

from bench import attention, compare, memory, pipeline, scaling, thread_scaling

COMMANDS = {  # name: (its options, what runs it, meaning)
    "sinkhorn": (partial(compare.add_arguments, cases="a,b,c"), compare.run, "every contender, a problem a category"),
    "joint": (
        partial(compare.add_arguments, cases="f"),
        compare.run,
        "every contender, one problem over all categories",
    ),
    "memory": (memory.add_arguments, memory.run, "peak memory beyond inputs and outputs"),
    "threads": (thread_scaling.add_arguments, thread_scaling.run, "wall time by number of threads and precision"),
    "scaling": (scaling.add_arguments, scaling.run, "time over B, N, M, C and D, as plots in docs/"),
    "attention": (attention.add_arguments, attention.run, "what a score rule costs in attention, beside rivals"),
    "pipeline": (pipeline.add_arguments, pipeline.run, "what each stage of GuardAlign costs a whole model"),
}


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(required=True)
    for name, (add_arguments, run, meaning) in COMMANDS.items():
        command = commands.add_parser(name, help=meaning, description=meaning)
        add_arguments(command)
        command.set_defaults(run=run)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
