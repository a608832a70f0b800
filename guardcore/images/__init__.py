"""Files of unknown origin become upright 8-bit RGB pictures, or errors by name."""
