"""Runs on a device that is not the CPU: a pretended one (`tests.fakegpu`)."""
