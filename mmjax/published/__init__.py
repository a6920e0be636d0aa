"""Published training settings that recipes and converted runs share."""
