"""The admin endpoints: what a tenant may see and steer of its own cache, and no more."""
