"""What a run says about itself: metric writers, progress line, FLOP/s, profiler window, reports."""
