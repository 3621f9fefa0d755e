"""The command `latency-lab`: one file a verb, data on stdout, all else on stderr."""
