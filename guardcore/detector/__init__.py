"""Pictures in, verdicts out: scoring, calibration, regions, verdicts and their drawing."""
