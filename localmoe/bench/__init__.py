"""Measuring: runs of one model under a memory limit, regime beside regime, and their bounds."""
