"""Monitoring of a run: metric writers, progress, FLOPs, profiles, reports, and its log."""
