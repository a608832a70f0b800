"""Generated scenes with known ground truth, and what is measured on them."""
