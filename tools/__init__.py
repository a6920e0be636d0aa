"""The commands of `mmjax`, one file each; importable as `mmjax.tools`."""
