"""Containers: where rows come from. What a row means is a matter of `layouts`."""
