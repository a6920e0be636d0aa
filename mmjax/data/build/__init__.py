"""Builds datasets from media files, and checks and draws them."""
