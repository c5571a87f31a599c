"""Autoencoders of images; each takes and gives float (n, c, h, w) in [0, 1]."""
