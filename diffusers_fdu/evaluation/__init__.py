"""Did it forget, and what else: pictures, metrics, attacks, one report."""
