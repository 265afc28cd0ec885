"""Batches: what a training step looks at, drawn from scans in memory. Samplers draw them; everything random comes from the generator."""
