"""Benchmarks: one file per `mmjax bench NAME`."""
