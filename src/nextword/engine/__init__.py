"""Requests → scheduler → forward → sampling → tokens: everything that produces or scores tokens."""
