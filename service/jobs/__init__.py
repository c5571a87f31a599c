"""Jobs: what states they go through, how they are claimed, kept alive and finished."""
