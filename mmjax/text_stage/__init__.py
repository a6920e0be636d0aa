"""The stage of `--task=segment` that writes and embeds diagnostic texts."""
