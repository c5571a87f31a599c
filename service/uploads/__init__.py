"""Uploads: resumable ones (tus 1.0), and the bytes of all of them, kept once."""
