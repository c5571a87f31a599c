"""Data sets: reading uploads, keeping versions as shards with a manifest, finding them again."""
