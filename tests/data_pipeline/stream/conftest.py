"""Property tests draw the same examples every time, and leave no folder behind."""

from hypothesis import settings

settings.register_profile("fovea", derandomize=True, database=None, deadline=None)
settings.load_profile("fovea")
