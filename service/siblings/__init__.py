"""One gateway of several processes: the first has the port and all that is known; its siblings answer inference."""
