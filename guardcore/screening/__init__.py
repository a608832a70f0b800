"""The main job: from arguments on the command line to one outcome for each input, reported."""
