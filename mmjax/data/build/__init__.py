"""Builds datasets from media files, validates them, and previews their examples."""
