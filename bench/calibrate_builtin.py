"""Calibrate the built-in encoder with the demonstration policy on generated benign scenes, for the package to ship.

python -m bench.calibrate_builtin [--scenes 1000] [--encoder builtin|FILE.safetensors]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import guardcore
from bench.detection import read
from bench.detection_data import benign_pictures
from guardcore.detector.conformal import calibrate
from guardcore.detector.detector import SHIPPED, Detector

DEFAULT = Path(guardcore.__file__).parent / "data" / SHIPPED


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=1000, help="benign scenes, at least 1 / target - 1")
    parser.add_argument("--encoder", default="builtin", help="spec of load_encoder, or weights of the built-in encoder")
    parser.add_argument("--output", type=Path, default=DEFAULT)
    arguments = parser.parse_args()
    detector = Detector(read(arguments.encoder), guardcore.Policy.builtin("demo"))
    calibration = calibrate(detector, benign_pictures(arguments.scenes))
    calibration.save(arguments.output)
    print(f"{calibration.count} benign scenes, target {calibration.target_fpr:g}: {arguments.output}")


if __name__ == "__main__":
    main()
