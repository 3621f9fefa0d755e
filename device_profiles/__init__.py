"""Profiles that ship with latency-lab: one JSON file a device, runtime, thread count and precision."""
