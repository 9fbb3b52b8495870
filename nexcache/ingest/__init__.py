"""From arriving spans to the invalidation of what they could have changed."""
