"""Measurements with a million jobs: the queue, a new scheduler, and a cancel."""
