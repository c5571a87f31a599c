"""Scores of images, one a file: (n, …) in, (n,) out, higher is more suspicious."""
