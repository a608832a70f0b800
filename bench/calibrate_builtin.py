"""Calibrate the built-in encoder with the demonstration policy on generated benign scenes, for the package to ship.

python -m bench.calibrate_builtin [--scenes 1000] [--encoder builtin|FILE.safetensors] [--scoring softmax|normalized]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import guardcore
from bench.detection import read
from bench.detection_data import benign_pictures
from guardcore.detector.conformal import calibrate
from guardcore.detector.detector import SHIPPED, Detector
from guardcore.detector.scoring import DEFAULT_RULE

RULES = dict(zip((DEFAULT_RULE, "normalized"), SHIPPED, strict=True))


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=1000, help="benign scenes, at least 1 / target - 1")
    parser.add_argument("--encoder", default="builtin", help="spec of load_encoder, or weights of the built-in encoder")
    parser.add_argument("--scoring", choices=RULES, default=DEFAULT_RULE, help="a rule, at its default settings")
    arguments = parser.parse_args()
    output = Path(guardcore.__file__).parent / "data" / RULES[arguments.scoring]
    detector = Detector(read(arguments.encoder), guardcore.Policy.builtin("demo"), scoring=arguments.scoring)
    calibration = calibrate(detector, benign_pictures(arguments.scenes))
    calibration.save(output)
    print(f"{calibration.count} benign scenes, target {calibration.target_fpr:g}: {output}")


if __name__ == "__main__":
    main()
