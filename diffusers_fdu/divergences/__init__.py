"""The theory: f-divergences between reverse steps, their conjugates, and losses of them."""
