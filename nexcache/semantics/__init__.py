"""The rules of HTTP caching as pure functions: no clock, no logging, no input or output."""
