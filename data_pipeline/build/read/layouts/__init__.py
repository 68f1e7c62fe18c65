"""Layouts: what a row means, whichever container it came from. Each module says what it keeps where."""
