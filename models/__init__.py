"""The mathematics of Winnow: arrays in, arrays out. `specs`, `calibration` and `abstention` need no torch."""
