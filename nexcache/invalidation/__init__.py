"""Generations: what makes an invalidation O(1) and a stale entry impossible."""
