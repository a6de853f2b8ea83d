def structure_from_options(a, b, c): return None
