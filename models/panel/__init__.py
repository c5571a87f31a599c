"""The detectors that look at an image together with its label, and at the candidate set as a whole."""
