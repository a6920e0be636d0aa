"""Commands: one file per `mmjax NAME`, importable as `mmjax.tools`."""
